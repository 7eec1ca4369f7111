// Package layoutstore is an example of a pullthrough.Store on disk, in OCI image layouts by go-containerregistry: one for
// each repository, which crane, skopeo and other tools read as they are.
package layoutstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// Store keeps images below Dir. One process at a time may write there. It is safe for concurrent use.
type Store struct {
	Dir string

	mu sync.Mutex // an index.json is read and written in one step
}

// The annotations of an entry of index.json. One without a tag is for its digest.
const (
	tagKey     = ocispec.AnnotationRefName
	checkedKey = "com.example.pullthrough.checked"
	originKey  = "com.example.pullthrough.origin"
)

// layout returns the repository's directory. No name has a "+", so that "a" and "a/blobs" do not meet.
func (s *Store) layout(repo pullthrough.Repo) layout.Path {
	return layout.Path(filepath.Join(s.Dir, "account-"+repo.Account, "region-"+repo.Region, repo.Name, "+"))
}

func index(l layout.Path) (*v1.IndexManifest, error) {
	ii, err := l.ImageIndex()
	if err != nil {
		return nil, err // which Is fs.ErrNotExist where there is no such repository
	}
	return ii.IndexManifest()
}

// find returns where the entry of a tag is, or of a digest if tag is ""; -1: nowhere.
func find(all *v1.IndexManifest, tag, d string) int {
	return slices.IndexFunc(all.Manifests, func(e v1.Descriptor) bool {
		return e.Annotations[tagKey] == tag && (tag != "" || e.Digest.String() == d)
	})
}

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	l, tag := s.layout(repo), ref
	if strings.Contains(ref, ":") {
		tag = ""
	}
	all, err := index(l)
	if err != nil {
		return nil, err
	}
	i := find(all, tag, ref)
	if i < 0 {
		return nil, fs.ErrNotExist
	}
	e := all.Manifests[i]
	content, err := l.Bytes(e.Digest)
	if err != nil {
		return nil, err
	}
	checked, _ := time.Parse(time.RFC3339Nano, e.Annotations[checkedKey]) // none: the zero time
	return &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: string(e.MediaType), Digest: digest.Digest(e.Digest.String()), Size: e.Size},
		Content:    content, Tag: tag, CheckedAt: checked, Origin: e.Annotations[originKey],
	}, nil
}

// PutManifest implements [pullthrough.Store].
func (s *Store) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	d, l := m.Descriptor.Digest.String(), s.layout(repo)
	h, err := v1.NewHash(d)
	if err != nil {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err) // sha512
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := index(l)
	if errors.Is(err, fs.ErrNotExist) {
		all, err = &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}, nil
	}
	if err != nil {
		return err
	}
	e := v1.Descriptor{MediaType: types.MediaType(m.Descriptor.MediaType), Digest: h, Size: m.Descriptor.Size, Annotations: map[string]string{originKey: m.Origin}}
	if find(all, "", d) < 0 {
		if err := write(blob(l, h), bytes.NewReader(m.Content), link); err != nil {
			return err
		}
		all.Manifests = append(all.Manifests, e)
	}
	if m.Tag != "" {
		i := find(all, m.Tag, "")
		if m.Source == pullthrough.SourceRevalidated && (i < 0 || all.Manifests[i].Digest != h) {
			return nil // the tag has moved since it was checked
		}
		e.Annotations = map[string]string{tagKey: m.Tag, originKey: m.Origin, checkedKey: m.CheckedAt.Format(time.RFC3339Nano)}
		if i >= 0 {
			all.Manifests = slices.Delete(all.Manifests, i, i+1)
		}
		all.Manifests = append(all.Manifests, e)
	}
	content, err := json.Marshal(all)
	if err != nil {
		return err
	}
	version := strings.NewReader(`{"imageLayoutVersion":"1.0.0"}`)
	return errors.Join(write(filepath.Join(string(l), "oci-layout"), version, os.Rename), write(filepath.Join(string(l), "index.json"), bytes.NewReader(content), os.Rename))
}

// Blob implements [pullthrough.Store].
func (s *Store) Blob(_ context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return nil, fs.ErrNotExist
	}
	file, err := s.layout(repo).Blob(h)
	if err != nil {
		return nil, err
	}
	return &pullthrough.Blob{Descriptor: ocispec.Descriptor{Digest: d}, Body: file}, nil // a file can seek, and has a size
}

// PutBlob implements [pullthrough.Store]. The layout's own WriteBlob would show a half of it meanwhile.
func (s *Store) PutBlob(_ context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	h, err := v1.NewHash(desc.Digest.String())
	if err != nil {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return write(blob(s.layout(repo), h), r, link)
}

func blob(l layout.Path, h v1.Hash) string {
	return filepath.Join(string(l), "blobs", h.Algorithm, h.Hex)
}

// link gives a file its name, unless another one has it.
func link(from, to string) error {
	if err := os.Link(from, to); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// write makes a file of all that r has, or none.
func write(name string, r io.Reader, place func(from, to string) error) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // which place has moved, or has given another name
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return place(f.Name(), name)
}
