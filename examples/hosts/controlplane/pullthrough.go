package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// New makes an emulator with the saved state of another one; nil: empty. endpoint returns
// the real address of an upstream registry, for tests; nil: the one in the rule.
func New(accountID, region string, saved []byte, endpoint func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error)) (*Emulator, error) {
	e := &Emulator{accountID: accountID, region: region, saved: saved, state: state{Repositories: map[string]*repository{}}}
	e.route()
	identify := func(*http.Request) (pullthrough.Identity, error) {
		return pullthrough.Identity{Account: accountID, Region: region}, nil
	}
	e.proxy = &pullthrough.Proxy{Store: store{e}, Rules: e, Endpoint: endpoint, Identify: identify}
	if saved == nil {
		return e, nil
	}
	return e, json.Unmarshal(saved, &e.state)
}

// Shutdown waits for running downloads. Shut the http.Server down first.
func (e *Emulator) Shutdown(ctx context.Context) error { return e.proxy.Shutdown(ctx) }

// Rules is called on each miss, so a rule made by the JSON API takes effect at once.
func (e *Emulator) Rules(context.Context, string, string) (rules []pullthrough.Rule, _ error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, r := range e.state.Rules {
		rules = append(rules, r.rule())
	}
	return rules, nil
}

func (r cacheRule) rule() pullthrough.Rule {
	return pullthrough.Rule{Prefix: r.EcrRepositoryPrefix, UpstreamURL: r.UpstreamRegistryURL, CredentialARN: r.CredentialARN}
}

// store is the pullthrough.Store over the emulator's state.
type store struct{ *Emulator }

var errNotHere = fmt.Errorf("%w: another account or Region", errors.ErrUnsupported)

func (s store) has(repo pullthrough.Repo) bool {
	return repo.Account == s.accountID && repo.Region == s.region
}

func (s store) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	img, tag := s.image(repo.Name, ref)
	if img == nil || !s.has(repo) {
		return nil, fs.ErrNotExist
	}
	m := &pullthrough.Manifest{Content: []byte(img.ImageManifest), Origin: img.Origin}
	m.Descriptor = ocispec.Descriptor{MediaType: img.ImageManifestMediaType, Digest: digest.Digest(img.ImageDigest), Size: int64(len(m.Content))}
	if tag.ImageDigest != "" {
		m.Tag, m.CheckedAt, m.Origin = ref, tag.CheckedAt, tag.Origin
	}
	return m, nil
}

func (s store) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if !s.has(repo) {
		return errNotHere
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, d := s.repository(repo.Name), m.Descriptor.Digest.String()
	if m.Source == pullthrough.SourceRevalidated && r.Tags[m.Tag].ImageDigest != d {
		return nil // the tag has moved since it was checked
	}
	if r.Images[d] == nil { // an image that is there keeps its push time
		r.Images[d] = &image{
			ImageDigest: d, ImageManifest: string(m.Content), ImageManifestMediaType: m.Descriptor.MediaType,
			ImagePushedAt: m.CheckedAt, Origin: m.Origin,
		}
	}
	if m.Tag != "" {
		r.Tags[m.Tag] = imageTag{ImageDigest: d, CheckedAt: m.CheckedAt, Origin: m.Origin}
	}
	s.save()
	return nil
}

func (s store) Blob(_ context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.state.Repositories[repo.Name]; r != nil && r.layers[d.String()] != nil && s.has(repo) {
		return pullthrough.NewBlob(d, r.layers[d.String()]), nil
	}
	return nil, fs.ErrNotExist
}

func (s store) PutBlob(_ context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	if !s.has(repo) {
		return errNotHere
	}
	layer := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, layer); err != nil { // before the lock
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if rd := s.repository(repo.Name); rd.layers == nil {
		rd.layers = map[string][]byte{}
	}
	s.repository(repo.Name).layers[desc.Digest.String()] = layer
	return nil
}
