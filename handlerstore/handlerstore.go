// Package handlerstore is a [pullthrough.Store] that keeps images in a registry that
// is an [http.Handler] in the same process, such as that of go-containerregistry or of
// distribution. Usually the Proxy also stands before that registry, so that clients
// see one registry with what was pushed and what is pulled through:
//
//	proxy := &pullthrough.Proxy{
//		Store: &handlerstore.Store{Handler: registry},
//		Rules: rules,
//		Fill:  pullthrough.FillEager, // registries want layers before manifests
//	}
//	http.Handle("/v2/", proxy.Handler(registry))
package handlerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Store is a [pullthrough.Store] over a registry that is an [http.Handler], such as that
// of go-containerregistry or distribution. It pulls from the registry and pushes to it
// as the OCI distribution spec says ("Pull" and "Push"), by calls in the same process
// and without a connection. Registries accept a manifest only after everything that it
// refers to, so the Proxy's Fill must be [pullthrough.FillEager].
//
// Contents, digests and media types are stored unchanged. Content that the registry
// refuses, such as a digest by sha512, is served and not stored. The Store takes a 404
// for a miss and every other refusal for a failure. A blob that is being stored takes
// 4 MiB of memory. The registry decides in which repositories a blob is visible: that
// of go-containerregistry, for example, shows each blob in all repositories.
//
// A registry does not record when a tag was last checked, nor from which upstream a
// manifest came. The Store keeps this in memory, for the 16,384 tags and manifests that
// were used last. All others count as pushed locally and never checked, so after a
// restart each tag is confirmed upstream once. With [pullthrough.Policy].KeepLocal such
// tags are not confirmed and stay as they are.
//
// A Store is safe for concurrent use. The fields must not change after the first use.
type Store struct {
	// Handler is the registry. It is required. It must not call the Proxy in turn. To
	// put the Proxy in front of the registry, pass this same handler to
	// [pullthrough.Proxy.Handler]. Many goroutines call it at once. A panic in it is an
	// error of the call.
	Handler http.Handler

	// Name returns the name of the repository in the registry, for example with
	// account and Region in front. Two repositories must not have the same name. An
	// error refuses the repository: its images are served and not stored. nil: the
	// registry belongs to the account and Region of the first call, and all others are
	// refused. Leave it nil if the host has a single account and Region. Set it if the
	// host reads them from requests, and serve clients the registry by way of
	// [Store.Registry], so that what they push and list has the same name.
	Name func(pullthrough.Repo) (string, error)

	once  sync.Once
	notes *lru.Cache[noteKey, note] // made by once

	mu     sync.Mutex
	tenant *pullthrough.Repo // the account and Region of the registry; nil: no call yet
}

// mediaType is the media type of every blob.
const mediaType = "application/octet-stream"

// maxNotes is how many notes are kept.
const maxNotes = 16 << 10

type noteKey struct{ name, ref string }

// note holds what a registry does not record of a tag or manifest. It is ignored if
// the tag names another digest by now, since the registry may move tags by itself.
type note struct {
	digest  digest.Digest
	checked time.Time
	origin  string
}

func (s *Store) noteCache() *lru.Cache[noteKey, note] {
	s.once.Do(func() { s.notes = lru.New[noteKey, note](maxNotes) })
	return s.notes
}

// innerRepo is a repository and its name in the registry.
type innerRepo struct {
	pullthrough.Repo
	name string
}

func (r innerRepo) path(kind, ref string) string { return "/v2/" + r.name + "/" + kind + "/" + ref }

// locate returns the repository's name in the registry, or an error if the registry must
// not have the repository. It validates all that becomes part of a path, including the
// name that the host returns.
func (s *Store) locate(ctx context.Context, repo pullthrough.Repo, ref string) (innerRepo, error) {
	if err := ctx.Err(); err != nil {
		return innerRepo{}, err
	}
	name, err := s.nameOf(repo)
	if err = errors.Join(ocipath.CheckRef(ref), err); err != nil {
		return innerRepo{}, &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Ref: ref, Err: err}
	}
	return innerRepo{repo, name}, nil
}

// nameOf returns the repository's name in the registry. It is the one place that maps names.
func (s *Store) nameOf(repo pullthrough.Repo) (name string, err error) {
	if err = ocipath.CheckName(repo.Name); err != nil {
		return "", &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Err: err}
	}
	if s.Name == nil {
		name, err = repo.Name, s.bind(repo)
	} else {
		err = hostcall.Guard("handlerstore.Store.Name", func() (err error) {
			name, err = s.Name(repo)
			return err
		})
	}
	if err == nil {
		err = ocipath.CheckName(name)
	}
	if err != nil {
		return "", &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Err: err}
	}
	return name, nil
}

// bind reserves the registry for the account and Region of the first call, and refuses
// all others.
func (s *Store) bind(repo pullthrough.Repo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenant == nil {
		s.tenant = &pullthrough.Repo{Account: repo.Account, Region: repo.Region}
	}
	if s.tenant.Account != repo.Account || s.tenant.Region != repo.Region {
		return fmt.Errorf("%w: a handlerstore.Store without Name is that of account %q in %q, not of %q in %q", errors.ErrUnsupported, s.tenant.Account, s.tenant.Region, repo.Account, repo.Region)
	}
	return nil
}

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	at, err := s.locate(ctx, repo, ref)
	if err != nil {
		return nil, err
	}
	return s.manifest(ctx, at, ref)
}

func (s *Store) manifest(ctx context.Context, at innerRepo, ref string) (*pullthrough.Manifest, error) {
	a, err := s.do(ctx, innerRequest{method: http.MethodGet, target: at.path("manifests", ref), header: http.Header{"Accept": {manifest.Accept}}})
	switch {
	case err != nil:
		return nil, err
	case a.status == http.StatusNotFound:
		return nil, missError(at.Repo, ref)
	case a.status != http.StatusOK:
		return nil, a.refusal()
	case a.cut:
		return nil, fmt.Errorf("manifest %s: %w", ref, pullthrough.ErrTooLarge)
	}
	known, _ := s.noteCache().Get(noteKey{at.name, ref})
	m := &pullthrough.Manifest{Content: a.body.Bytes()}
	m.Descriptor, err = describe(a, ref, known.digest)
	if err != nil {
		return nil, err
	}
	if known.digest == m.Descriptor.Digest {
		m.CheckedAt, m.Origin = known.checked, known.origin
	}
	if !ocipath.IsDigest(ref) {
		m.Tag = ref
	}
	return m, nil
}

// describe returns the descriptor of the manifest in a. If ref is a digest, that is the
// manifest's digest. If ref is a tag, it is the digest with which the manifest was put,
// or else the one that the registry sends. Content that does not match its digest or its
// Content-Length is an error.
func describe(a *innerAnswer, ref string, known digest.Digest) (ocispec.Descriptor, error) {
	content := a.body.Bytes()
	if n, ok := contentrange.Digits(a.header.Get("Content-Length")); ok && n != a.size {
		return ocispec.Descriptor{}, fmt.Errorf("manifest %s has %d bytes of %d: %w", ref, a.size, n, io.ErrUnexpectedEOF)
	}
	desc := ocispec.Descriptor{MediaType: a.header.Get("Content-Type"), Size: int64(len(content))}
	if t, _, err := mime.ParseMediaType(desc.MediaType); err == nil {
		desc.MediaType = t
	}
	if desc.MediaType == "" {
		info, err := manifest.Inspect("", content, manifest.Stored)
		if err != nil {
			return desc, fmt.Errorf("manifest %s of no media type: %w", ref, err)
		}
		desc.MediaType = info.MediaType
	}
	if ocipath.IsDigest(ref) {
		desc.Digest = digest.Digest(ref)
		if !matchesDigest(desc.Digest, content) {
			return desc, fmt.Errorf("the registry's manifest %s: %w", ref, pullthrough.ErrDigest)
		}
		return desc, nil
	}
	sent := digest.Digest(a.header.Get("Docker-Content-Digest"))
	switch {
	case validDigest(sent) && !matchesDigest(sent, content):
		return desc, fmt.Errorf("the registry's manifest %s, which it says is %s: %w", ref, sent, pullthrough.ErrDigest)
	case validDigest(known) && matchesDigest(known, content):
		desc.Digest = known
	case validDigest(sent):
		desc.Digest = sent
	default:
		desc.Digest = digest.FromBytes(content)
	}
	return desc, nil
}

func validDigest(d digest.Digest) bool { return ocipath.ValidDigest(string(d)) }

// missError returns the error of a look-up that finds nothing.
func missError(repo pullthrough.Repo, ref string) error {
	return &fs.PathError{Op: "open", Path: ocipath.Object(repo.Name, ref), Err: fs.ErrNotExist}
}

// RepoExists reports whether the registry lists the tags of the repository, of which there
// may be none. Of a registry that lists no tags it is false.
func (s *Store) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	name, err := s.nameOf(repo)
	if err != nil {
		return false, err
	}
	a, err := s.do(ctx, innerRequest{method: http.MethodGet, target: "/v2/" + name + "/tags/list?n=1"})
	if err == nil && a.status/100 == 5 && !a.isUnsupported() {
		err = a.refusal()
	}
	return err == nil && a.status == http.StatusOK, err
}

func matchesDigest(d digest.Digest, content []byte) bool {
	return d.Algorithm().FromBytes(content) == d
}

// PutManifest implements [pullthrough.Store]. A registry that answers a push by tag with
// 409 or 412 is taken to say that the tag is immutable.
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	d := m.Descriptor.Digest
	ref := m.Tag
	if ref == "" {
		ref = d.String()
	}
	at, err := s.locate(ctx, repo, ref)
	if err != nil {
		return err
	}
	if !validDigest(d) || ocipath.IsDigest(m.Tag) {
		return &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Ref: ref, Err: fmt.Errorf("tag %.80q of %.80q", m.Tag, d)}
	}
	if !matchesDigest(d, m.Content) {
		return fmt.Errorf("manifest %s: %w", d, pullthrough.ErrDigest)
	}
	if m.Source == pullthrough.SourceRevalidated && m.Tag != "" {
		if done, err := s.recheck(ctx, at, m); done {
			return err
		}
	}
	return s.putManifest(ctx, at, m)
}

// recheck records that upstream has confirmed the tag, if the tag still names the digest
// that was confirmed. done is false if the tag no longer exists; the caller must then
// store the manifest.
func (s *Store) recheck(ctx context.Context, at innerRepo, m *pullthrough.Manifest) (done bool, err error) {
	have, err := s.manifest(ctx, at, m.Tag)
	switch {
	case isMiss(err):
		return false, nil
	case err == nil && have.Descriptor.Digest == m.Descriptor.Digest:
		s.remember(at, m)
	}
	return true, err
}

func (s *Store) putManifest(ctx context.Context, at innerRepo, m *pullthrough.Manifest) error {
	d := m.Descriptor.Digest
	// After a push by tag alone, the registry has the manifest under its sha256 only.
	if m.Tag == "" || d.Algorithm() != digest.SHA256 {
		if err := s.push(ctx, at, d.String(), m); err != nil {
			return err
		}
	}
	if m.Tag != "" {
		if err := s.push(ctx, at, m.Tag, m); err != nil {
			return err
		}
	}
	s.remember(at, m)
	return nil
}

func (s *Store) push(ctx context.Context, at innerRepo, ref string, m *pullthrough.Manifest) error {
	a, err := s.do(ctx, innerRequest{
		method: http.MethodPut, target: at.path("manifests", ref), body: m.Content,
		header: http.Header{"Content-Type": {m.Descriptor.MediaType}},
	})
	switch {
	case err != nil:
		return err
	case (a.status == http.StatusConflict || a.status == http.StatusPreconditionFailed) && ref == m.Tag:
		return fmt.Errorf("%w: %w", pullthrough.ErrImmutable, a.refusal())
	case !a.isSuccess():
		return fmt.Errorf("%w (what a manifest refers to must be stored before it: FillEager)", a.refusal())
	}
	d := m.Descriptor.Digest
	if got := digest.Digest(a.header.Get("Docker-Content-Digest")); validDigest(got) && got.Algorithm() == d.Algorithm() && got != d {
		return fmt.Errorf("the registry has made %s of manifest %s: %w", got, d, pullthrough.ErrDigest)
	}
	return nil
}

// remember keeps the notes for m. The note for the digest keeps the origin of the first
// upstream.
func (s *Store) remember(at innerRepo, m *pullthrough.Manifest) {
	n := note{m.Descriptor.Digest, m.CheckedAt, m.Origin}
	if m.Tag != "" {
		s.noteCache().Put(noteKey{at.name, m.Tag}, n)
	}
	key := noteKey{at.name, n.digest.String()}
	if _, known := s.noteCache().Get(key); !known && n.origin != "" {
		s.noteCache().Put(key, n)
	}
}
