package dirstore

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// tree is a directory in distribution's format. All names are relative to the
// store's directory, and made of checked values only.
type tree string

const (
	registryTree tree = "docker/registry/v2"
	ownTree      tree = "pullthrough" // the same format, out of the registry's sight

	stagingDir = "pullthrough/staging"

	// maxRegistryName is how long a name may be before the registry's garbage
	// collection ends at it.
	maxRegistryName = 255
)

func (t tree) blobs() string        { return path.Join(string(t), "blobs") }
func (t tree) repositories() string { return path.Join(string(t), "repositories") }

// data is the file with the content of d.
func (t tree) data(d digest.Digest) string {
	hex := d.Encoded()
	return path.Join(t.blobs(), d.Algorithm().String(), hex[:2], hex, "data")
}

// repository is a repository's place in a tree.
type repository struct {
	tree tree
	name string
}

func newRepository(name string) repository {
	if len(name) > maxRegistryName {
		return repository{ownTree, name}
	}
	return repository{registryTree, name}
}

// homes are the places of the repository's manifests: those that the registry
// can read, and the others.
func (r repository) homes() []repository {
	if r.tree == ownTree {
		return []repository{r}
	}
	return []repository{r, {ownTree, r.name}}
}

func (r repository) join(elem ...string) string {
	return path.Join(r.tree.repositories(), r.name, path.Join(elem...))
}

// layers must be there for the registry's garbage collection to come past the
// repository.
func (r repository) layers() string { return r.join("_layers") }

func (r repository) layer(d digest.Digest) string {
	return r.join("_layers", digestPath(d))
}

func (r repository) revision(d digest.Digest) string {
	return r.join("_manifests/revisions", digestPath(d))
}

// tag is the directory of what the tag is now. There is nothing but tags beside
// its parent: the registry lists whatever it finds there.
func (r repository) tag(tag string) string {
	return r.join("_manifests/tags", tag, "current")
}

// history is the registry's note that the tag once was d.
func (r repository) history(tag string, d digest.Digest) string {
	return r.join("_manifests/tags", tag, "index", digestPath(d))
}

func digestPath(d digest.Digest) string {
	return path.Join(d.Algorithm().String(), d.Encoded())
}

// link is the file in dir that says which digest is meant.
func link(dir string) string { return path.Join(dir, "link") }

// pathName is the repository's name in the directory. Two repositories never
// share one: a plain name that could be read as another account's is given its
// account, too.
func (s *Store) pathName(repo pullthrough.Repo) (string, error) {
	if err := ocipath.CheckName(repo.Name); err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(repo.Name, "/")
	if repo.Account == s.Account && repo.Region == s.Region && !isAccount(first) {
		return repo.Name, nil
	}
	if !isAccount(repo.Account) {
		return "", fmt.Errorf("%.80q is no account id", repo.Account)
	}
	if !isRegion(repo.Region) {
		return "", fmt.Errorf("%.80q is no Region", repo.Region)
	}
	return path.Join(repo.Account, repo.Region, repo.Name), nil
}

// isAccount reports whether s is 12 digits.
func isAccount(s string) bool {
	return len(s) == 12 && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// isRegion reports whether s can be a Region, and a component of a repository
// name as the registry reads it: lower-case letters, digits, and hyphens within.
func isRegion(s string) bool {
	return ocipath.ValidName(s+"/0") && !strings.ContainsAny(s, "/._")
}
