//go:build unix

package dirstore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// survey is what is checked of a directory after a crash. What is not as it must be
// is a violation, and fails the test.
type survey struct {
	t          testing.TB
	dir        string
	up         *pullthroughtest.Upstream
	damaged    bool // by the test: the files need not be good before they are read
	objects    int  // files, and answers of the Store, that were looked at
	violations int
}

func (v *survey) expect(ok bool, format string, args ...any) {
	v.t.Helper()
	if v.objects++; !ok {
		v.violations++
		v.t.Errorf("violation: "+format, args...)
	}
}

// check looks at every file, opens the directory, asks the Store for all that is
// visible, pulls every image, and looks once more.
func (v *survey) check() {
	v.t.Helper()
	s, err := dirstore.Open(v.dir)
	require.NoError(v.t, err)
	v.expect(len(staged(v.t, v.dir)) == 0, "leftovers of the dead: %v", staged(v.t, v.dir))
	found := files(v.t, v.dir)
	if !v.damaged {
		v.files(found)
	}
	v.answers(s, found)
	v.pulls(s)
	found = files(v.t, v.dir)
	v.files(found)
	v.answers(s, found)
	v.whole(s)
	v.expect(s.Close() == nil, "the Store does not close")
	v.expect(len(staged(v.t, v.dir)) == 0, "leftovers of the living: %v", staged(v.t, v.dir))
}

// allowed are the files that the layout has.
var allowed = regexp.MustCompile(`^(?:(?:docker/registry/v2|pullthrough)/(?:` +
	`blobs/(?:sha256/../[0-9a-f]{64}|sha512/../[0-9a-f]{128})/data` +
	`|repositories/([a-z0-9/._-]+?)/(?:` +
	`_layers/DIGEST/(?:link|size)` +
	`|_manifests/revisions/DIGEST/(?:link|sha[0-9]+-[0-9a-f]+\.json)` +
	`|_manifests/tags/[^/]+/(?:current/(?:link|sha[0-9]+-[0-9a-f]+\.json)|index/DIGEST/link)` +
	`|_referrers/DIGEST\.json)))$`)

var digestPart = regexp.MustCompile(`/(sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})(/link|/size|/sha[0-9]+-[0-9a-f]+\.json|\.json)$`)

// files checks every file by itself: that it belongs there and is whole, that what
// it names is there, and that its repository is one.
func (v *survey) files(found map[string]string) {
	v.t.Helper()
	for name, content := range found {
		pattern := name
		if at := digestPart.FindStringSubmatchIndex(name); at != nil {
			pattern = name[:at[2]] + "DIGEST" + name[at[3]:]
		}
		match := allowed.FindStringSubmatch(pattern)
		v.expect(match != nil, "%s does not belong there", name)
		if match == nil {
			continue
		}
		if place := match[1]; strings.Contains(name, "/_manifests/") || strings.Contains(name, "/_layers/") {
			info, err := os.Stat(filepath.Join(v.dir, repositories, place, "_layers"))
			v.expect(err == nil && info.IsDir(), "repository %s has no _layers", place)
		}
		switch filepath.Base(name) {
		case "data":
			v.data(name, content)
		case "link":
			v.link(found, name, content)
		default:
			v.expect(json.Valid([]byte(content)), "%s is not whole: %q", name, content)
		}
	}
}

func (v *survey) data(name, content string) {
	hex, algorithm := filepath.Base(filepath.Dir(name)), digest.SHA256
	if len(hex) == 128 {
		algorithm = digest.SHA512
	}
	v.expect(algorithm.FromString(content).Encoded() == hex, "%s has other content, %d bytes", name, len(content))
}

// link checks that the content is there. The history of a tag is only a note.
func (v *survey) link(found map[string]string, name, content string) {
	d := digest.Digest(content)
	v.expect(d.Validate() == nil, "%s is no link: %q", name, content)
	if d.Validate() != nil || strings.Contains(name, "/index/") {
		return
	}
	_, registrys := found[layout.Registry.Data(d)]
	_, own := found[layout.Own.Data(d)]
	v.expect(registrys || own, "%s leads to nothing", name)
}

// answers asks the Store for whatever has a link. A miss is a good answer; a link
// that the Store does not like is one that it removes.
func (v *survey) answers(s *dirstore.Store, found map[string]string) {
	v.t.Helper()
	for name, content := range found {
		_, in, ok := strings.Cut(name, "/repositories/")
		if !ok || filepath.Base(name) != "link" {
			continue
		}
		place, what, _ := strings.Cut(in, "/_")
		repo, ok := layout.Owner{}.Repo(place)
		v.expect(ok, "%s is nobody's", place)
		part := strings.Split(what, "/")
		switch {
		case part[0] == "layers":
			v.blob(s, repo, digest.NewDigestFromEncoded(digest.Algorithm(part[1]), part[2]))
		case part[1] == "revisions":
			v.manifest(s, repo, part[2]+":"+part[3], digest.Digest(part[2]+":"+part[3]))
		case part[3] == "current":
			v.manifest(s, repo, part[2], digest.Digest(content))
		}
	}
}

func (v *survey) blob(s *dirstore.Store, repo pullthrough.Repo, d digest.Digest) {
	b, err := s.Blob(v.t.Context(), repo, d)
	if err == nil {
		err = readWhole(b, d)
	}
	v.expect(err == nil || isMiss(err), "blob %s of %s: %v", d, repo.Name, err)
}

func (v *survey) manifest(s *dirstore.Store, repo pullthrough.Repo, ref string, d digest.Digest) {
	m, err := s.Manifest(v.t.Context(), repo, ref)
	if err != nil {
		v.expect(isMiss(err), "manifest %s of %s: %v", ref, repo.Name, err)
		return
	}
	v.expect(m.Descriptor.Digest == d && digest.FromBytes(m.Content) == d, "manifest %s of %s is %s", ref, repo.Name, m.Descriptor.Digest)
	if m.Tag == "" {
		return
	}
	for _, c := range crowd() {
		if c.repo == repo && c.tag == m.Tag {
			known := slices.ContainsFunc(c.images, func(img *pullthroughtest.Image) bool { return img.Digest == d })
			v.expect(known && m.Origin != "", "the tag %s of %s, from %q, was never %s", ref, repo.Name, m.Origin, d)
		}
	}
}

// pulls pulls every tag, then every image by digest: all of it is right, and
// upstream is asked for what is missing, once, and for nothing else.
func (v *survey) pulls(s *dirstore.Store) {
	v.t.Helper()
	p := newProxy(s, otherName(v.up.URL), pullthrough.FillLazy, pullthrough.Policy{TagTTL: -1})
	v.up.Reset()
	var missing []string
	for _, c := range crowd() {
		if _, err := s.Manifest(v.t.Context(), c.repo, c.tag); err != nil {
			missing = append(missing, "GET /v2/"+upstreamName(c.repo)+"/manifests/"+c.tag+" 200")
		}
		m, err := p.Manifest(v.t.Context(), pullthrough.Request{Repo: c.repo, Ref: c.tag})
		known := err == nil && slices.ContainsFunc(c.images, func(img *pullthroughtest.Image) bool { return string(img.Content) == string(m.Content) })
		v.expect(known, "%s:%s cannot be pulled: %v", c.repo.Name, c.tag, err)
	}
	v.expect(p.Idle(v.t.Context()) == nil, "a manifest is not stored") // it was answered before
	v.asked(missing)
	missing = nil
	v.eachObject(func(repo pullthrough.Repo, img *pullthroughtest.Image, b *pullthroughtest.Blob) {
		if !stored(s, repo, img, b) {
			missing = append(missing, "GET "+objectPath(repo, img, b)+" 200")
		}
	})
	for _, c := range crowd() {
		for _, img := range c.images {
			err := pullImage(v.t.Context(), p, c.repo, img.Digest.String())
			v.expect(err == nil, "%s@%s cannot be pulled: %v", c.repo.Name, img.Digest, err)
		}
	}
	v.asked(missing)
	v.expect(shutDown(v.t.Context(), p) == nil, "a download does not end")
}

// asked compares what upstream was asked for, and forgets it. A request of the dead
// may still arrive: it is told by the name that they have for upstream.
func (v *survey) asked(want []string) {
	v.t.Helper()
	times := make(map[string]int)
	for _, r := range v.up.Requests() {
		if r.Host == otherName(v.up.Host()) {
			times[r.String()]++
		}
	}
	for _, line := range want {
		times[line]--
	}
	for line, n := range times {
		v.expect(n == 0, "%s: upstream was asked %+d times more often than it was missing", line, n)
	}
	v.up.Reset()
}

// whole checks that the Store has everything.
func (v *survey) whole(s *dirstore.Store) {
	v.eachObject(func(repo pullthrough.Repo, img *pullthroughtest.Image, b *pullthroughtest.Blob) {
		v.expect(stored(s, repo, img, b), "%s is not stored after a pull", objectPath(repo, img, b))
	})
}

// eachObject calls f for each manifest, with b nil, and each blob of every
// repository, once.
func (v *survey) eachObject(f func(repo pullthrough.Repo, img *pullthroughtest.Image, b *pullthroughtest.Blob)) {
	seen := make(map[string]bool)
	once := func(repo pullthrough.Repo, img *pullthroughtest.Image, b *pullthroughtest.Blob) {
		if key := repo.Account + objectPath(repo, img, b); !seen[key] {
			seen[key] = true
			f(repo, img, b)
		}
	}
	var visit func(repo pullthrough.Repo, img *pullthroughtest.Image)
	visit = func(repo pullthrough.Repo, img *pullthroughtest.Image) {
		once(repo, img, nil)
		for _, b := range img.Blobs() {
			once(repo, img, b)
		}
		for _, child := range img.Children {
			visit(repo, child)
		}
	}
	for _, c := range crowd() {
		for _, img := range c.images {
			visit(c.repo, img)
		}
	}
}

func objectPath(repo pullthrough.Repo, img *pullthroughtest.Image, b *pullthroughtest.Blob) string {
	if b == nil {
		return fmt.Sprint("/v2/", upstreamName(repo), "/manifests/", img.Digest)
	}
	return fmt.Sprint("/v2/", upstreamName(repo), "/blobs/", b.Digest)
}

// stored reports whether the Store has the blob b, or with b nil the manifest.
func stored(s *dirstore.Store, repo pullthrough.Repo, img *pullthroughtest.Image, b *pullthroughtest.Blob) bool {
	ctx := context.Background()
	if b == nil {
		_, err := s.Manifest(ctx, repo, img.Digest.String())
		return err == nil
	}
	blob, err := s.Blob(ctx, repo, b.Digest)
	return err == nil && blob.Body.Close() == nil
}
