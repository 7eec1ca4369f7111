package pullthroughtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// plainStore is a Store of the simplest kind, as a host might write it, with all
// that a Store may be. It is right unless a bug is planted in it.
type plainStore struct {
	bug string // "": none
	dir string // of stages

	lock  chan struct{} // one place; a mutex whose waiters can be let go
	repos map[pullthrough.Repo]*plainRepo
	busy  map[digest.Digest]bool
	kept  map[string]*plainStage

	bodies map[digest.Digest]io.ReadCloser // of readers that share one

	missed, cloned, refused int // how often
}

type plainRepo struct {
	tags      map[string]*pullthrough.Manifest
	manifests map[digest.Digest]*pullthrough.Manifest
	blobs     map[digest.Digest][]byte
	referrers map[digest.Digest]plainList
}

type plainList struct {
	index   *ocispec.Index
	checked time.Time
}

var _ interface {
	pullthrough.Store
	pullthrough.TagLister
	pullthrough.RepoLister
	pullthrough.ManifestLister
	pullthrough.ImageDeleter
	pullthrough.RepoCreator
	pullthrough.ReferrerStore
	pullthrough.BlobStager
} = (*plainStore)(nil)

func newPlainStore(t *testing.T, bug string) *plainStore {
	return &plainStore{
		bug: bug, dir: t.TempDir(), lock: make(chan struct{}, 1), repos: map[pullthrough.Repo]*plainRepo{}, busy: map[digest.Digest]bool{},
	}
}

func (s *plainStore) has(bug string) bool { return s.bug == bug }

func (s *plainStore) enter() { s.lock <- struct{}{} }
func (s *plainStore) leave() { <-s.lock }

// awaitLocked lets others in until something has happened, or is not going to.
func (s *plainStore) awaitLocked(happened func() bool) {
	for range 100_000 {
		if happened() {
			return
		}
		s.leave()
		runtime.Gosched()
		s.enter()
	}
}

// key is what repositories are told apart by.
func (s *plainStore) key(repo pullthrough.Repo) pullthrough.Repo {
	switch s.bug {
	case "forgets the account":
		repo.Account = ""
	case "forgets the Region":
		repo.Region = ""
	case "joins account, Region and name":
		if repo.Account == "111122223333" && repo.Region == "us-east-1" {
			return pullthrough.Repo{Name: repo.Name}
		}
		return pullthrough.Repo{Name: repo.Account + "/" + repo.Region + "/" + repo.Name}
	case "cuts long names":
		repo.Name = repo.Name[:min(len(repo.Name), 60)]
	case "one room for all repositories":
		repo.Name = "all"
	}
	return repo
}

func (s *plainStore) repoLocked(repo pullthrough.Repo) *plainRepo {
	repo = s.key(repo)
	if s.repos[repo] == nil {
		s.repos[repo] = &plainRepo{
			map[string]*pullthrough.Manifest{}, map[digest.Digest]*pullthrough.Manifest{}, map[digest.Digest][]byte{}, map[digest.Digest]plainList{},
		}
	}
	return s.repos[repo]
}

var errPlainMiss = fmt.Errorf("plain: %w", fs.ErrNotExist)

func (s *plainStore) missLocked() error {
	s.missed++
	return s.miss()
}

func (s *plainStore) miss() error {
	if s.has("misses are errors of its own") {
		return errors.New("no such key")
	}
	return errPlainMiss
}

func (s *plainStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := ctx.Err(); err != nil {
		if s.has("treats any error as a miss") {
			return nil, s.miss()
		}
		return nil, err
	}
	s.enter()
	defer s.leave()
	r := s.repos[s.key(repo)]
	if r == nil {
		if s.has("a miss is no error") {
			return nil, nil
		}
		return nil, s.miss()
	}
	m := r.tags[s.tag(ref)]
	if m == nil {
		m = r.manifests[digest.Digest(ref)]
	}
	if m == nil && s.has("serves layers as manifests") && r.blobs[digest.Digest(ref)] != nil {
		return &pullthrough.Manifest{Descriptor: ocispec.Descriptor{Digest: digest.Digest(ref)}, Content: r.blobs[digest.Digest(ref)]}, nil
	}
	if m == nil {
		return nil, s.missLocked()
	}
	if s.has("shares what it changes") {
		return m, nil
	}
	c := *m
	return &c, nil
}

func (s *plainStore) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	c, err := s.admitted(m)
	if err != nil {
		return err
	}
	s.enter()
	defer s.leave()
	r := s.repoLocked(repo)
	if m.Source == pullthrough.SourceRevalidated && !s.has("a check stores anew") {
		return s.recheckLocked(r, m)
	}
	if s.has("repeated puts are errors") && r.manifests[m.Descriptor.Digest] != nil {
		return fs.ErrExist
	}
	s.keepLocked(r, c)
	return nil
}

// recheckLocked changes the time of a tag that is still what was checked.
func (s *plainStore) recheckLocked(r *plainRepo, m *pullthrough.Manifest) error {
	have := r.tags[m.Tag]
	if have == nil || have.Descriptor.Digest != m.Descriptor.Digest {
		return nil
	}
	if s.has("a check changes all tags of the digest") {
		for _, other := range r.tags {
			if other.Descriptor.Digest == m.Descriptor.Digest {
				other.CheckedAt = m.CheckedAt
			}
		}
	}
	if s.has("shares what it changes") {
		have.CheckedAt = m.CheckedAt
		return nil
	}
	c := *have
	c.CheckedAt = m.CheckedAt
	r.tags[m.Tag] = &c
	return nil
}

func (s *plainStore) keepLocked(r *plainRepo, c *pullthrough.Manifest) {
	untagged := *c
	untagged.Tag = ""
	old := r.tags[s.tag(c.Tag)]
	if old != nil && s.has("a tag that moves takes its digest away") {
		delete(r.manifests, old.Descriptor.Digest)
	}
	if r.manifests[c.Descriptor.Digest] == nil {
		r.manifests[c.Descriptor.Digest] = &untagged
	}
	switch {
	case c.Tag == "" && s.has("an untagged put is latest"):
		r.tags["latest"] = c
	case c.Tag == "":
	case s.has("one tag for each digest"):
		maps.DeleteFunc(r.tags, func(_ string, have *pullthrough.Manifest) bool { return have.Descriptor.Digest == c.Descriptor.Digest })
		r.tags[s.tag(c.Tag)] = c
	case s.has("a tag moves in two steps") && old != nil:
		delete(r.tags, c.Tag)
		missed := s.missed
		s.awaitLocked(func() bool { return s.missed > missed })
		r.tags[c.Tag] = c
	case s.has("loses what others put"):
		before := maps.Clone(r.tags)
		s.cloned++
		s.awaitLocked(func() bool { return s.cloned == 16 }) // as many as the check puts
		before[c.Tag] = c
		r.tags = before
	default:
		r.tags[s.tag(c.Tag)] = c
	}
}

// admitted is what is kept of m.
func (s *plainStore) admitted(m *pullthrough.Manifest) (*pullthrough.Manifest, error) {
	c := *m
	c.Source = pullthrough.SourceHit
	switch s.bug {
	case "encodes manifests anew":
		var doc map[string]any
		if json.Unmarshal(m.Content, &doc) == nil {
			c.Content, _ = json.Marshal(doc)
		}
	case "keeps manifests as text":
		c.Content = bytes.ToValidUTF8(m.Content, []byte("\ufffd"))
	case "forgets the media type":
		c.Descriptor.MediaType = ocispec.MediaTypeImageManifest
	case "guesses the media type":
		if !bytes.Contains(m.Content, []byte("vnd.docker.distribution.manifest")) {
			c.Descriptor.MediaType = ocispec.MediaTypeImageManifest
		}
	case "knows sha256 only":
		c.Descriptor.Digest = digest.FromBytes(m.Content)
	case "forgets the origin":
		c.Origin = ""
	case "forgets the time":
		c.CheckedAt = time.Time{}
	case "no time is 1970":
		if m.CheckedAt.IsZero() {
			c.CheckedAt = time.Unix(0, 0)
		}
	case "changes what is put":
		m.Source = pullthrough.SourceHit
	}
	if m.Descriptor.Digest.Algorithm().FromBytes(m.Content) == m.Descriptor.Digest {
		return &c, nil
	}
	if s.has("keeps what it refuses") {
		s.enter()
		defer s.leave()
		for _, r := range s.repos {
			r.manifests[m.Descriptor.Digest] = &c
		}
	}
	return nil, pullthrough.ErrDigest
}

func (s *plainStore) tag(tag string) string {
	if s.has("tags without case") {
		return string(bytes.ToLower([]byte(tag)))
	}
	return tag
}

func (s *plainStore) Tags(_ context.Context, repo pullthrough.Repo) (tags []string, err error) {
	s.enter()
	defer s.leave()
	r := s.repos[s.key(repo)]
	if r == nil {
		if s.has("tags of nothing") {
			return nil, nil
		}
		return nil, s.miss()
	}
	tags = slices.Sorted(maps.Keys(r.tags))
	if s.has("one page of tags") {
		tags = tags[:min(len(tags), 100)]
	}
	return tags, nil
}

func (s *plainStore) Repos(_ context.Context, account, region string) (names []string, err error) {
	s.enter()
	defer s.leave()
	for repo := range s.repos {
		if repo.Account == account && repo.Region == region || s.has("lists everybody's repositories") {
			names = append(names, repo.Name)
		}
	}
	return names, nil
}

func (s *plainStore) Manifests(_ context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		s.enter()
		r := s.repos[s.key(repo)]
		all := []digest.Digest{}
		if r != nil && s.has("tagged manifests only") {
			for _, m := range r.tags {
				all = append(all, m.Descriptor.Digest)
			}
		} else if r != nil {
			all = slices.Collect(maps.Keys(r.manifests))
		}
		s.leave()
		if r == nil {
			yield("", s.miss())
			return
		}
		for _, d := range all {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func (s *plainStore) DeleteImage(_ context.Context, repo pullthrough.Repo, ref string) error {
	s.enter()
	defer s.leave()
	r := s.repos[s.key(repo)]
	if r == nil {
		return s.miss()
	}
	if m := r.tags[ref]; m != nil {
		delete(r.tags, ref)
		if s.has("a tag goes with its image") {
			delete(r.manifests, m.Descriptor.Digest)
		}
		if s.has("a put beside a deletion is lost") {
			delete(r.tags, "stays")
		}
		return nil
	}
	d := digest.Digest(ref)
	if r.manifests[d] == nil {
		return s.miss()
	}
	delete(r.manifests, d)
	if !s.has("tags outlive their image") {
		maps.DeleteFunc(r.tags, func(_ string, m *pullthrough.Manifest) bool { return m.Descriptor.Digest == d })
	}
	return nil
}

func (s *plainStore) DeleteRepo(_ context.Context, repo pullthrough.Repo) error {
	s.enter()
	defer s.leave()
	if s.repos[s.key(repo)] == nil {
		return s.miss()
	}
	maps.DeleteFunc(s.repos, func(r pullthrough.Repo, _ *plainRepo) bool {
		return r == s.key(repo) || s.has("what is below goes, too") && strings.HasPrefix(r.Name, repo.Name+"/")
	})
	return nil
}

func (s *plainStore) RepoExists(_ context.Context, repo pullthrough.Repo) (bool, error) {
	s.enter()
	defer s.leave()
	return s.repos[s.key(repo)] != nil && !s.has("finds no repository"), nil
}

func (s *plainStore) CreateRepo(_ context.Context, repo pullthrough.Repo, _ pullthrough.Rule, _ pullthrough.Request) error {
	s.enter()
	defer s.leave()
	if s.has("a repository is made once") && s.repos[s.key(repo)] != nil {
		return fs.ErrExist
	}
	s.repoLocked(repo)
	return nil
}

func (s *plainStore) Referrers(_ context.Context, repo pullthrough.Repo, subject digest.Digest) (*ocispec.Index, time.Time, error) {
	s.enter()
	defer s.leave()
	r := s.repos[s.key(repo)]
	if r == nil {
		return nil, time.Time{}, s.miss()
	}
	list, ok := r.referrers[subject]
	if !ok || s.has("an empty list is a miss") && len(list.index.Manifests) == 0 {
		return nil, time.Time{}, s.miss()
	}
	return list.index, list.checked, nil
}

func (s *plainStore) PutReferrers(_ context.Context, repo pullthrough.Repo, subject digest.Digest, list *ocispec.Index, checked time.Time) error {
	s.enter()
	defer s.leave()
	r := s.repoLocked(repo)
	if have, ok := r.referrers[subject]; ok && s.has("shares what it changes") {
		have.index.Manifests = append(have.index.Manifests[:0], list.Manifests...)
		return nil
	}
	r.referrers[subject] = plainList{list, checked}
	return nil
}

// release lets those go who wait for a lock that nobody gives back.
func (s *plainStore) release() {
	if s.has("does not unlock with defer") {
		s.leave()
	}
}
