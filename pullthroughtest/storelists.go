package pullthroughtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

var listChecks = []storeCheck{
	{"tags are listed", needsTags, ruleTags, checkTags},
	{"a thousand tags are listed", needsTags, ruleTags, checkManyTags},
	{"repositories are listed", needsRepos, ruleRepos, checkRepos},
	{"repositories are found", needsFinder, ruleExists, checkExists},
	{"repositories are made", needsCreator, ruleExists, checkCreate},
}

// repoFinder is what [pullthrough.RepoCreator] says of Stores that make no repositories.
type repoFinder interface {
	RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error)
}

// wantExists checks whether the repository is there.
func (s *storeTest) wantExists(repo pullthrough.Repo, want bool, when string) {
	s.Helper()
	if got, err := s.store.(repoFinder).RepoExists(s.Context(), repo); err != nil || got != want {
		s.Errorf("RepoExists(%s) in %s of %s returned %t, %v %s, want %t", repo.Name, repo.Region, repo.Account, got, err, when, want)
	}
}

func checkExists(s *storeTest) {
	repo := storeRepo("found")
	s.wantExists(repo, false, "before anything was put into it")
	s.put(storeRepo("found/below"), storeImage(127), "v1")
	s.wantExists(repo, false, "when something was put into a repository below")
	s.put(repo, storeImage(127), "v1")
	s.wantExists(repo, true, "after an image was put into it")
}

// wantTags checks the repository's tags, in any order.
func (s *storeTest) wantTags(repo pullthrough.Repo, want ...string) {
	s.Helper()
	got, err := s.store.(pullthrough.TagLister).Tags(s.Context(), repo)
	if err != nil {
		s.Errorf("Tags(%s) failed: %v", repo.Name, err)
		return
	}
	s.wantNames("Tags("+repo.Name+")", got, want)
}

func (s *storeTest) wantNames(call string, got, want []string) {
	s.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		s.Errorf("%s returned %d names, %.300q, want %d: %.300q", call, len(got), got, len(want), want)
	}
}

func checkTags(s *storeTest) {
	lister, repo := s.store.(pullthrough.TagLister), storeRepo("tags-listed")
	if tags, err := lister.Tags(s.Context(), repo); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("Tags of a repository that is not there returned %q, %v, want an error that Is fs.ErrNotExist", tags, err)
	}
	img := storeImage(120)
	s.put(repo, img, "")
	s.wantTags(repo)
	s.put(repo, img, "v1")
	s.put(repo, img, "latest")
	s.put(repo, img, "latest")
	s.put(repo, storeImage(121), "V1")
	s.put(storeRepo("tags-listed/below"), img, "elsewhere")
	s.wantTags(repo, "v1", "latest", "V1")
	s.move(repo, storeImage(122), "latest")
	s.wantTags(repo, "v1", "latest", "V1")

	tags, err := lister.Tags(s.Context(), repo)
	if err != nil {
		s.Fatalf("Tags failed: %v", err)
	}
	for i := range tags { // callers may sort and change what they get
		tags[i] = "changed"
	}
	s.wantTags(repo, "v1", "latest", "V1")
	if errOther := s.offer(pullthrough.Repo{Account: otherAccount, Region: otherRegion, Name: repo.Name}, img, "foreign"); errOther == nil {
		s.wantTags(repo, "v1", "latest", "V1")
	}
}

// checkManyTags is about Stores that list page by page, often with 1,000 entries a page.
func checkManyTags(s *storeTest) {
	repo, img, n := storeRepo("many-tags"), storeImage(123), 1001
	if testing.Short() {
		n = 101
	}
	s.put(repo, img, "")
	want := make([]string, n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				if err := s.store.PutManifest(s.Context(), repo, manifestOf(img, want[i])); err != nil {
					s.Errorf("PutManifest of tag %s failed: %v", want[i], err)
				}
			}
		})
	}
	for i := range n {
		want[i] = fmt.Sprintf("v%d", i)
		next <- i
	}
	close(next)
	wg.Wait()
	s.wantTags(repo, want...)
}

func checkRepos(s *storeTest) {
	lister, img := s.store.(pullthrough.RepoLister), storeImage(124)
	repos := func(account, region string) []string {
		names, err := lister.Repos(s.Context(), account, region)
		if err != nil {
			s.Errorf("Repos(%s, %s) failed: %v", account, region, err)
		}
		return names
	}
	s.wantNames("Repos of an empty Store", repos(storeAccount, storeRegion), nil)
	var want []string
	for _, name := range []string{"one", "one/two", "one/two/three", "manifests", "blobs/tags"} {
		repo := storeRepo(name)
		s.put(repo, img, "v1")
		s.put(repo, img, "v2")
		want = append(want, repo.Name)
	}
	s.wantNames("Repos", repos(storeAccount, storeRegion), want)
	elsewhere := storeRepo("elsewhere")
	elsewhere.Region = otherRegion
	if err := s.offer(elsewhere, img, "v1"); err != nil {
		s.Logf("another Region is refused: %v", err)
		return
	}
	s.wantNames("Repos", repos(storeAccount, storeRegion), want)
	s.wantNames("Repos of the other Region", repos(storeAccount, otherRegion), []string{elsewhere.Name})
	if names, err := lister.Repos(s.Context(), otherAccount, otherRegion); err == nil { // the Store may refuse the account
		s.wantNames("Repos of an account without any", names, nil)
	}
}

func checkCreate(s *storeTest) {
	creator, repo := s.store.(pullthrough.RepoCreator), storeRepo("created")
	rule := pullthrough.Rule{Prefix: "store-test", UpstreamURL: storeOrigin, CreatedAt: storeTime}
	create := func() {
		s.Helper()
		err := creator.CreateRepo(s.Context(), repo, rule, pullthrough.Request{Repo: repo, Ref: "v1"})
		if err != nil {
			s.under(ruleCreate).Fatalf("CreateRepo failed: %v", err)
		}
	}
	s.wantExists(repo, false, "before it was made")
	create()
	s.wantExists(repo, true, "after CreateRepo")
	s.wantExists(storeRepo("created/below"), false, "when another one was made")
	if got, err := creator.RepoExists(s.Context(), pullthrough.Repo{Account: otherAccount, Region: storeRegion, Name: repo.Name}); err == nil && got {
		s.Errorf("RepoExists(%s) is true in %s of %s when the repository of %s was made", repo.Name, storeRegion, otherAccount, storeAccount)
	}
	s.wantNoManifest(repo, "v1", "when only the repository was made")
	s.put(repo, storeImage(125), "v1")
	create()
	s.wantManifest(repo, "v1", manifestOf(storeImage(125), "v1"))
	s.put(storeRepo("not-created"), storeImage(126), "v1") // "creates the repository if need be"
	s.wantExists(storeRepo("not-created"), true, "after an image was put into it")
}

var referrerChecks = []storeCheck{
	{"lists of referrers come back", needsReferrers, ruleReferrers, checkReferrers},
	{"lists of referrers do not change", needsReferrers, ruleReferrersKept, checkReferrersStay},
}

// referrerList returns a list of n artifacts. A list of none is a list too.
func referrerList(n int) *ocispec.Index {
	index := &ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	}
	for i := range n {
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint("referrer ", i)), Size: int64(i + 1),
			ArtifactType: "application/vnd.example.signature", Annotations: map[string]string{"org.example.n": fmt.Sprint(i), "org.example.odd": "\u2028<&>"},
		})
	}
	return index
}

func (s *storeTest) wantReferrers(repo pullthrough.Repo, subject digest.Digest, want *ocispec.Index, checked time.Time) *ocispec.Index {
	s.Helper()
	got, at, err := s.store.(pullthrough.ReferrerStore).Referrers(s.Context(), repo, subject)
	switch {
	case err != nil || got == nil:
		s.Errorf("Referrers(%s, %s) returned %v, %v, want the list that was put, of %d", repo.Name, subject, got, err, len(want.Manifests))
	case !sameTime(at, checked):
		s.Errorf("Referrers(%s, %s) says the list was checked at %v, want %v", repo.Name, subject, at, checked)
	case !sameJSON(got, want):
		s.Errorf("Referrers(%s, %s) returned another list than was put: %d referrers of %d", repo.Name, subject, len(got.Manifests), len(want.Manifests))
	}
	return got
}

func sameJSON(a, b any) bool {
	one, errOne := json.Marshal(a)
	two, errTwo := json.Marshal(b)
	return errOne == nil && errTwo == nil && string(one) == string(two)
}

func checkReferrers(s *storeTest) {
	store, repo := s.store.(pullthrough.ReferrerStore), storeRepo("referrers")
	subjects := []digest.Digest{digest.FromString("a"), digest.FromString("b")}
	sha512 := digest.SHA512.FromString("a")
	if err := store.PutReferrers(s.Context(), repo, sha512, referrerList(1), storeTime); err != nil {
		s.Logf("a list of referrers to a digest by sha512 is refused: %v", err)
	} else {
		s.wantReferrers(repo, sha512, referrerList(1), storeTime)
	}
	miss := func(repo pullthrough.Repo, subject digest.Digest, why string) {
		s.Helper()
		_, _, err := store.Referrers(s.Context(), repo, subject)
		if err != nil && repo.Account == otherAccount {
			return // the Store may refuse the account
		}
		if complaint := missComplaint(err); complaint != "" {
			s.Errorf("Referrers(%s, %s) %s %s", repo.Name, subject, complaint, why)
		}
	}
	foreign := []pullthrough.Repo{storeRepo("referrers-too"), {Account: otherAccount, Region: storeRegion, Name: repo.Name}}
	for i, subject := range subjects {
		miss(repo, subject, "before any list was put")
		for _, n := range []int{3, 0, 200 + i} { // each replaces the one before
			checked := storeTime.Add(time.Duration(n) * time.Minute)
			if err := store.PutReferrers(s.Context(), repo, subject, referrerList(n), checked); err != nil {
				s.Fatalf("PutReferrers of %d failed: %v", n, err)
			}
			s.wantReferrers(repo, subject, referrerList(n), checked)
		}
		for _, other := range foreign {
			miss(other, subject, "when the list is another repository's")
		}
	}
	for i, subject := range subjects {
		s.wantReferrers(repo, subject, referrerList(200+i), storeTime.Add(time.Duration(200+i)*time.Minute))
	}
}

func checkReferrersStay(s *storeTest) {
	store, repo, subject := s.store.(pullthrough.ReferrerStore), storeRepo("referrers-stay"), digest.FromString("a")
	list := referrerList(3)
	if err := store.PutReferrers(s.Context(), repo, subject, list, storeTime); err != nil {
		s.Fatalf("PutReferrers failed: %v", err)
	}
	got := s.wantReferrers(repo, subject, list, storeTime)
	if err := store.PutReferrers(s.Context(), repo, subject, referrerList(5), storeTime); err != nil {
		s.Fatalf("PutReferrers failed: %v", err)
	}
	if !sameJSON(list, referrerList(3)) {
		s.Errorf("PutReferrers has changed the list that it was given")
	}
	if !sameJSON(got, referrerList(3)) {
		s.Errorf("what Referrers returned has changed when another list was put")
	}
}
