// Package handlerstore makes a [pullthrough.Store] of a registry that is an
// [http.Handler] in the same process.
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

// Store makes a [pullthrough.Store] of a registry that is an [http.Handler], such as
// go-containerregistry's or distribution's: it pulls from it and pushes to it
// in process (OCI distribution spec, "Pull" and "Push"), without a connection.
// Registries want what a manifest refers to before the manifest: the Proxy's
// Fill must be [pullthrough.FillEager].
//
// Contents, digests and media types are kept as they are; what the registry
// refuses, such as a digest by sha512, is served and not stored. A 404 is a miss
// and every other refusal a failure. When a tag was checked, and which upstream a
// manifest came from, no registry keeps: it is in memory, for the 16,384
// tags and manifests used last. Others pass for pushed locally and never
// checked, so after a restart each tag is confirmed upstream once; with
// [pullthrough.Policy].KeepLocal such tags stay as they are. A blob that is being stored
// takes 4 MiB of memory. Who sees which blob is as the registry has it:
// go-containerregistry's, for one, shows each in all repositories.
//
// It is safe for concurrent use. The fields must not change after the first use.
type Store struct {
	// Handler is the registry. It is required, and must not be one that asks the
	// Proxy in turn: to stand before the registry, give [pullthrough.Proxy.Handler] this same
	// handler. It is called by many goroutines at once. A panic is an error.
	Handler http.Handler

	// Name returns the name that the repository has in the registry, for example
	// with account and Region before it. Two repositories must not share one. An
	// error refuses the repository: its images are served and not stored. nil: the
	// account and Region of the first call are those of the registry, and others
	// are refused. That is for hosts who have one only, not for those who read it
	// from requests.
	Name func(pullthrough.Repo) (string, error)

	known sync.Once
	notes *lru.Cache[noteKey, note] // made by known

	mu     sync.Mutex
	tenant *pullthrough.Repo // whom the registry belongs to; nil: nobody has called yet
}

// mediaType is what a registry says of every blob.
const mediaType = "application/octet-stream"

// maxNotes bounds what is remembered of tags and manifests.
const maxNotes = 16 << 10

type noteKey struct{ name, ref string }

// note is what no registry keeps. It says nothing once the tag, which the
// registry may move by itself, names something else.
type note struct {
	digest  digest.Digest
	checked time.Time
	origin  string
}

func (s *Store) remembered() *lru.Cache[noteKey, note] {
	s.known.Do(func() { s.notes = lru.New[noteKey, note](maxNotes) })
	return s.notes
}

// innerRepo is a repository as the registry knows it.
type innerRepo struct {
	pullthrough.Repo        // as we do
	name             string // as it does
}

func (r innerRepo) path(kind, ref string) string { return "/v2/" + r.name + "/" + kind + "/" + ref }

// locate is where repo lives, if it may live here. What becomes part of a path is
// checked, the name that the host made too.
func (s *Store) locate(ctx context.Context, repo pullthrough.Repo, ref string) (innerRepo, error) {
	if err := ctx.Err(); err != nil {
		return innerRepo{}, err
	}
	err := errors.Join(ocipath.CheckName(repo.Name), ocipath.CheckRef(ref))
	name := repo.Name
	switch {
	case err != nil:
	case s.Name == nil:
		err = s.bind(repo)
	default:
		err = hostcall.Guard("handlerstore.Store.Name", func() (err error) {
			name, err = s.Name(repo)
			return err
		})
		if err == nil {
			err = ocipath.CheckName(name)
		}
	}
	if err != nil {
		return innerRepo{}, &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Ref: ref, Err: err}
	}
	return innerRepo{repo, name}, nil
}

// bind lets the first tenant in, and nobody else.
func (s *Store) bind(repo pullthrough.Repo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenant == nil {
		s.tenant = &pullthrough.Repo{Account: repo.Account, Region: repo.Region}
	}
	if s.tenant.Account != repo.Account || s.tenant.Region != repo.Region {
		return fmt.Errorf("a handlerstore.Store without Name is that of account %q in %q, not of %q in %q", s.tenant.Account, s.tenant.Region, repo.Account, repo.Region)
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
		return nil, missing(at.Repo, ref)
	case a.status != http.StatusOK:
		return nil, a.refusal()
	case a.cut:
		return nil, fmt.Errorf("manifest %s: %w", ref, pullthrough.ErrTooLarge)
	}
	known, _ := s.remembered().Get(noteKey{at.name, ref})
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

// describe is the descriptor of the manifest in a. Its digest is by the algorithm
// asked for, of a tag the one that it was put with, or that the registry
// tells. Content that is not what the registry says it is, such as the beginning
// of it, is an error.
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
		info, err := manifest.Inspect("", content)
		if err != nil {
			return desc, fmt.Errorf("manifest %s of no media type: %w", ref, err)
		}
		desc.MediaType = info.MediaType
	}
	if ocipath.IsDigest(ref) {
		desc.Digest = digest.Digest(ref)
		if !isOf(desc.Digest, content) {
			return desc, fmt.Errorf("the registry's manifest %s: %w", ref, pullthrough.ErrDigest)
		}
		return desc, nil
	}
	told := digest.Digest(a.header.Get("Docker-Content-Digest"))
	switch {
	case validDigest(told) && !isOf(told, content):
		return desc, fmt.Errorf("the registry's manifest %s, which it says is %s: %w", ref, told, pullthrough.ErrDigest)
	case validDigest(known) && isOf(known, content):
		desc.Digest = known
	case validDigest(told):
		desc.Digest = told
	default:
		desc.Digest = digest.FromBytes(content)
	}
	return desc, nil
}

func validDigest(d digest.Digest) bool { return ocipath.ValidDigest(string(d)) }

func missing(repo pullthrough.Repo, ref string) error {
	return &fs.PathError{Op: "open", Path: ocipath.Object(repo.Name, ref), Err: fs.ErrNotExist}
}

func isOf(d digest.Digest, content []byte) bool { return d.Algorithm().FromBytes(content) == d }

// PutManifest implements [pullthrough.Store]. Answers 409 and 412 to a push by tag are taken
// for a tag that must not move.
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
	if !isOf(d, m.Content) {
		return fmt.Errorf("manifest %s: %w", d, pullthrough.ErrDigest)
	}
	if m.Source == pullthrough.SourceRevalidated && m.Tag != "" {
		if done, err := s.recheck(ctx, at, m); done {
			return err
		}
	}
	return s.putManifest(ctx, at, m)
}

// recheck notes that upstream has confirmed the tag, if it still is what was
// confirmed. A tag that is gone is for the caller to store.
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
	// Pushed by tag alone it would be stored under its sha256 only.
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
	case !a.succeeded():
		return fmt.Errorf("%w (what a manifest refers to must be stored before it: FillEager)", a.refusal())
	}
	d := m.Descriptor.Digest
	if got := digest.Digest(a.header.Get("Docker-Content-Digest")); validDigest(got) && got.Algorithm() == d.Algorithm() && got != d {
		return fmt.Errorf("the registry has made %s of manifest %s: %w", got, d, pullthrough.ErrDigest)
	}
	return nil
}

// remember keeps what the registry does not. The origin by digest is that of the
// first upstream.
func (s *Store) remember(at innerRepo, m *pullthrough.Manifest) {
	n := note{m.Descriptor.Digest, m.CheckedAt, m.Origin}
	if m.Tag != "" {
		s.remembered().Put(noteKey{at.name, m.Tag}, n)
	}
	key := noteKey{at.name, n.digest.String()}
	if _, known := s.remembered().Get(key); !known && n.origin != "" {
		s.remembered().Put(key, n)
	}
}
