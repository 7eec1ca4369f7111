package ownhandlers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// New makes an emulator for one account in one Region.
func New(accountID, region string, rules pullthrough.RuleSource) *Emulator {
	e := &Emulator{accountID: accountID, region: region, Repositories: map[string]*repositoryData{}}
	e.proxy = &pullthrough.Proxy{Store: store{e}, Rules: rules}
	return e
}

func (e *Emulator) repo(name string) pullthrough.Repo {
	return pullthrough.Repo{Account: e.accountID, Region: e.region, Name: name}
}

// Shutdown waits for running downloads. Shut the http.Server down first.
func (e *Emulator) Shutdown(ctx context.Context) error { return e.proxy.Shutdown(ctx) }

// pullManifest answers if the image is stored or a rule covers it. It reports whether it did.
func (e *Emulator) pullManifest(w http.ResponseWriter, r *http.Request, name, ref string) bool {
	m, err := e.proxy.Manifest(r.Context(), pullthrough.Request{Repo: e.repo(name), Ref: ref, Head: r.Method == http.MethodHead})
	if err == nil {
		pullthrough.WriteManifest(w, r, m)
	}
	return finish(w, err)
}

func (e *Emulator) pullBlob(w http.ResponseWriter, r *http.Request, name, d string) bool {
	b, err := e.proxy.Blob(r.Context(), pullthrough.Request{Repo: e.repo(name), Ref: d, Head: r.Method == http.MethodHead})
	if err == nil {
		pullthrough.WriteBlob(w, r, b)
	}
	return finish(w, err)
}

// finish writes err, if there is one. It reports whether the request has been answered.
func finish(w http.ResponseWriter, err error) bool {
	if errors.Is(err, pullthrough.ErrNoRule) {
		return false // the emulator answers with its own 404
	}
	if err != nil {
		pullthrough.WriteError(w, err)
	}
	return true
}

// store is the pullthrough.Store over the emulator's maps.
type store struct{ *Emulator }

var errNotHere = fmt.Errorf("%w: another account or Region", errors.ErrUnsupported)

func (s store) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	img, tag := s.image(repo.Name, ref)
	if img == nil || repo != s.repo(repo.Name) {
		return nil, fs.ErrNotExist
	}
	m := &pullthrough.Manifest{Content: []byte(img.ImageManifest), Origin: img.Origin}
	m.Descriptor = ocispec.Descriptor{MediaType: img.ImageManifestMediaType, Digest: digest.Digest(img.ImageDigest), Size: int64(len(m.Content))}
	if tag != (imageTag{}) {
		m.Tag, m.CheckedAt, m.Origin = ref, tag.CheckedAt, tag.Origin
	}
	return m, nil
}

func (s store) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if repo != s.repo(repo.Name) {
		return errNotHere
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rd, d := s.repository(repo.Name), m.Descriptor.Digest.String()
	if m.Source == pullthrough.SourceRevalidated && rd.Tags[m.Tag].ImageDigest != d {
		return nil // the tag has moved since it was checked
	}
	if rd.Images[d] == nil { // an image that is there keeps its push time
		rd.Images[d] = &Image{
			RegistryID: s.accountID, RepositoryName: repo.Name, ImageDigest: d, ImageManifest: string(m.Content),
			ImageManifestMediaType: m.Descriptor.MediaType, ImagePushedAt: m.CheckedAt, Origin: m.Origin,
		}
	}
	if m.Tag != "" {
		rd.Tags[m.Tag] = imageTag{ImageDigest: d, CheckedAt: m.CheckedAt, Origin: m.Origin}
	}
	return nil
}

func (s store) Blob(_ context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	layer, ok := s.layer(repo.Name, d.String())
	if !ok || repo != s.repo(repo.Name) {
		return nil, fs.ErrNotExist
	}
	return pullthrough.NewBlob(d, layer), nil
}

func (s store) PutBlob(_ context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	if repo != s.repo(repo.Name) {
		return errNotHere
	}
	layer := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, layer); err != nil { // before the lock
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repository(repo.Name).Layers[desc.Digest.String()] = layer
	return nil
}
