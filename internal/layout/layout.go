// Package layout says where a store keeps what, in the format of distribution's
// registry, and what the small files hold. It does no input or output. All paths
// are relative to the store's root, slash-separated, and made of checked values
// only. What is decided here is a contract with other programs and with stores that
// are filled already.
//
//	docker/registry/v2/blobs/ALG/XX/HEX/data                       content, once
//	docker/registry/v2/repositories/NAME/_layers/ALG/HEX/link      who may see it
//	docker/registry/v2/repositories/NAME/_manifests/revisions/...  the same for manifests
//	docker/registry/v2/repositories/NAME/_manifests/tags/TAG/...   current/link, index/.../link
//	pullthrough/                                                   out of the registry's sight
//
// To store a blob is to write its data, then its link. For manifests see package
// filing, which has the order in which the files are read and written. The page
// docs/layout.md tells the whole format, and what is reserved in it.
package layout

import (
	"path"

	"github.com/opencontainers/go-digest"
)

// Tree is a directory in distribution's format.
type Tree string

const (
	// Registry is the tree that the registry reads.
	Registry Tree = "docker/registry/v2"
	// Own has the same format, out of the registry's sight.
	Own Tree = "pullthrough"

	// Staging is where files are before they have their names, in a directory. Uploads
	// is the same in a bucket.
	Staging = "pullthrough/staging"
	Uploads = "pullthrough/uploads"

	// Partial is where downloads are that ended early, in a directory.
	Partial = "pullthrough/partial"

	// Lock is the file that stores lock while they commit, shared, and while they
	// remove, alone. Gate is locked before it, so that no process waits for ever. Sweep
	// is locked by the one process that looks for what to remove.
	Lock  = "pullthrough/lock"
	Gate  = "pullthrough/gate"
	Sweep = "pullthrough/sweep"

	// Size is the file that says how many bytes of content there are, about.
	Size = "pullthrough/size"

	// MaxRegistryName is how long a path name may be before the registry's garbage
	// collection ends at it.
	MaxRegistryName = 255
)

// Blobs is the directory of all content.
func (t Tree) Blobs() string { return path.Join(string(t), "blobs") }

// Repositories is the directory of all repositories.
func (t Tree) Repositories() string { return path.Join(string(t), "repositories") }

// Data is the file with the content of d, a valid digest.
func (t Tree) Data(d digest.Digest) string {
	hex := d.Encoded()
	return path.Join(t.Blobs(), d.Algorithm().String(), hex[:2], hex, "data")
}

// Repository is a repository's place in a tree. Name is its path name.
type Repository struct {
	Tree Tree
	Name string
}

// NewRepository is the place of the repository with this path name, of its blobs
// and its tags.
func NewRepository(name string) Repository {
	if len(name) > MaxRegistryName {
		return Repository{Own, name}
	}
	return Repository{Registry, name}
}

// Homes are the places where the repository's manifests may be, in the order in
// which to look: those that the registry can read, and the others.
func (r Repository) Homes() []Repository {
	if r.Tree == Own {
		return []Repository{r}
	}
	return []Repository{r, {Own, r.Name}}
}

// Home is the place for a manifest with this content. Its tag stays in r.
func (r Repository) Home(content []byte) Repository {
	if !registryReads(content) {
		return Repository{Own, r.Name}
	}
	return r
}

// Root is the directory of the repository. Those of others may be below it; its
// own begin with an underscore.
func (r Repository) Root() string { return path.Join(r.Tree.Repositories(), r.Name) }

func (r Repository) join(elem ...string) string {
	return path.Join(r.Root(), path.Join(elem...))
}

// Layers is the directory of the blobs' links. It must be there for the
// registry's garbage collection to come past the repository, and says that the
// repository exists.
func (r Repository) Layers() string { return r.join(LayersDir) }

const (
	// LayersDir and ManifestsDir are the names of the directories that only
	// repositories have.
	LayersDir    = "_layers"
	ManifestsDir = "_manifests"
)

// LayersNote is an empty file in [Repository.Layers] where a directory needs
// something in it. The registry overlooks it.
func (r Repository) LayersNote() string { return r.join(LayersDir, "_pullthrough") }

// Layer is the directory of the link of the blob d.
func (r Repository) Layer(d digest.Digest) string {
	return r.join(LayersDir, digestPath(d))
}

// Revisions is the directory of the manifests' links: ALG/HEX/link.
func (r Repository) Revisions() string { return r.join(ManifestsDir, "revisions") }

// Revision is the directory of the link and the sidecar of the manifest d.
func (r Repository) Revision(d digest.Digest) string {
	return r.join(ManifestsDir, "revisions", digestPath(d))
}

// Tags is the directory of the tags. There is nothing but tags in it: the
// registry lists whatever it finds there.
func (r Repository) Tags() string { return r.join(ManifestsDir, "tags") }

// Tag is the directory of the link and the sidecar of what the tag is now.
func (r Repository) Tag(tag string) string {
	return r.join(ManifestsDir, "tags", tag, "current")
}

// TagInUpperCase is what [Repository.Tag] is too, where case makes no difference.
func (r Repository) TagInUpperCase(tag string) string {
	return r.join(ManifestsDir, "tags", tag, "CURRENT")
}

// History is the directory of the note that the tag was d before. The registry, which
// writes one also of what the tag is now, uses it when it removes a manifest.
func (r Repository) History(tag string, d digest.Digest) string {
	return r.join(ManifestsDir, "tags", tag, "index", digestPath(d))
}

// Referrers is the file with the list of what refers to subject.
func (r Repository) Referrers(subject digest.Digest) string {
	return path.Join(r.ReferrersDir(), digestPath(subject)+".json")
}

// ReferrersDir is the directory of the lists: ALG/HEX.json.
func (r Repository) ReferrersDir() string { return Repository{Own, r.Name}.join("_referrers") }

func digestPath(d digest.Digest) string {
	return path.Join(d.Algorithm().String(), d.Encoded())
}
