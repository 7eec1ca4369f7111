package pullthroughtest

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

var deleteChecks = []storeCheck{
	{"manifests are listed", needsManifests, ruleManifests, checkManifests},
	{"a tag is deleted", needsDeleter, ruleDelete, checkDeleteTag},
	{"an image is deleted", needsDeleter, ruleDelete, checkDeleteImage},
	{"a repository is deleted", needsDeleter, ruleDeleteRepo, checkDeleteRepo},
	{"deletions and puts at once", needsDeleter, ruleConcurrent, checkDeleteTogether},
}

// wantManifests checks the digests of the repository's manifests, in any order.
func (s *storeTest) wantManifests(repo pullthrough.Repo, want ...*Image) {
	s.Helper()
	names := func(all []digest.Digest) (names []string) {
		for _, d := range all {
			names = append(names, string(d))
		}
		return names
	}
	var got, wanted []digest.Digest
	for d, err := range s.store.(pullthrough.ManifestLister).Manifests(s.Context(), repo) {
		if err != nil {
			s.Errorf("Manifests(%s) failed: %v", repo.Name, err)
			return
		}
		got = append(got, d)
	}
	for _, img := range want {
		wanted = append(wanted, img.Digest)
	}
	s.wantNames("Manifests("+repo.Name+")", names(got), names(wanted))
}

func checkManifests(s *storeTest) {
	lister, repo := s.store.(pullthrough.ManifestLister), storeRepo("manifests-listed")
	for d, err := range lister.Manifests(s.Context(), repo) {
		if complaint := missComplaint(err); complaint != "" || d != "" {
			s.Errorf("Manifests of a repository that is not there yielded %q, and %s", d, complaint)
		}
	}
	child, other := storeImage(130), storeImage(131)
	index := NewIndex(child)
	s.put(repo, index, "v1")
	s.put(repo, index, "v2")
	s.put(storeRepo("manifests-listed/below"), other, "v1")
	s.wantManifests(repo, index, child)
	s.put(repo, other, "")
	s.wantManifests(repo, index, child, other)
	for range lister.Manifests(s.Context(), repo) {
		break // a caller may have seen enough
	}
	if s.move(repo, storeImage(132), "v1") {
		s.wantManifests(repo, index, child, other, storeImage(132))
	}
}

// deleteImage deletes ref. It reports false if the Store does not delete that.
func (s *storeTest) deleteImage(repo pullthrough.Repo, ref string) bool {
	s.Helper()
	err := s.store.(pullthrough.ImageDeleter).DeleteImage(s.Context(), repo, ref)
	if errors.Is(err, errors.ErrUnsupported) {
		s.Logf("DeleteImage(%s, %s) is not supported: %v", repo.Name, ref, err)
		return false
	}
	if err != nil {
		s.Errorf("DeleteImage(%s, %s) failed: %v", repo.Name, ref, err)
	}
	return err == nil
}

// wantNothingToDelete checks that the deletion of what is not there says so, or that the
// Store does not delete that.
func (s *storeTest) wantNothingToDelete(repo pullthrough.Repo, ref string) {
	s.Helper()
	err := s.store.(pullthrough.ImageDeleter).DeleteImage(s.Context(), repo, ref)
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errors.ErrUnsupported) {
		s.Errorf("DeleteImage(%s, %s), which is not there, returned %v, want an error that Is fs.ErrNotExist", repo.Name, ref, err)
	}
}

// wantWholeBlob checks that the blob can be read.
func (s *storeTest) wantWholeBlob(repo pullthrough.Repo, b *Blob) {
	s.Helper()
	content, err := s.readBlob(s.Context(), repo, b.Digest)
	if err != nil || digest.FromBytes(content) != b.Digest {
		s.Errorf("Blob(%s, %s) returned %d bytes, %v, want the content of an image that was not deleted", repo.Name, b.Digest, len(content), err)
	}
}

func checkDeleteTag(s *storeTest) {
	repo, below, img := storeRepo("tag-deleted"), storeRepo("tag-deleted/below"), storeImage(133)
	for _, in := range []pullthrough.Repo{repo, below} {
		s.put(in, img, "v1")
	}
	s.put(repo, img, "v2")
	if !s.deleteImage(repo, "v1") {
		return
	}
	s.wantNoManifest(repo, "v1", "after its deletion")
	s.wantNothingToDelete(repo, "v1")
	s.wantManifest(repo, "v2", manifestOf(img, "v2"))
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
	s.wantManifest(below, "v1", manifestOf(img, "v1"))
	if storeHas(s.store, needsTags) {
		s.wantTags(repo, "v2")
	}
	if !s.deleteImage(repo, "v2") {
		return
	}
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, "")) // untagged now
	s.put(repo, storeImage(134), "v1")
	s.wantManifest(repo, "v1", manifestOf(storeImage(134), "v1"))
}

func checkDeleteImage(s *storeTest) {
	repo, elsewhere, img, other := storeRepo("image-deleted"), storeRepo("image-elsewhere"), storeImage(135), storeImage(136)
	s.wantNothingToDelete(repo, img.Digest.String())
	s.put(repo, img, "v1")
	s.put(repo, img, "v2")
	s.put(repo, other, "other")
	s.put(elsewhere, img, "v1")
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	if !s.deleteImage(repo, img.Digest.String()) {
		return
	}
	for _, ref := range []string{"v1", "v2", img.Digest.String()} {
		s.wantNoManifest(repo, ref, "after the deletion of the manifest")
		s.wantNothingToDelete(repo, ref)
	}
	s.wantManifest(elsewhere, "v1", manifestOf(img, "v1"))
	s.wantManifest(repo, "other", manifestOf(other, "other"))
	for _, layer := range other.Layers {
		s.wantWholeBlob(repo, layer)
	}
	if storeHas(s.store, needsTags) {
		s.wantTags(repo, "other")
	}
	if storeHas(s.store, needsManifests) {
		s.wantManifests(repo, other)
	}
	s.put(repo, img, "v2")
	s.wantManifest(repo, "v2", manifestOf(img, "v2"))
	s.wantNoManifest(repo, "v1", "when the manifest was put again under another tag")
}

func checkDeleteRepo(s *storeTest) {
	deleter, repo, img := s.store.(pullthrough.ImageDeleter), storeRepo("deleted"), storeImage(137)
	if err := deleter.DeleteRepo(s.Context(), repo); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errors.ErrUnsupported) {
		s.Errorf("DeleteRepo(%s), which is not there, returned %v, want an error that Is fs.ErrNotExist", repo.Name, err)
	}
	others := []pullthrough.Repo{storeRepo("deleted/below"), storeRepo("deleted-not")}
	for _, in := range append(others, repo) {
		s.put(in, img, "v1")
	}
	s.put(repo, storeImage(138), "v2")
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	if err := deleter.DeleteRepo(s.Context(), repo); errors.Is(err, errors.ErrUnsupported) {
		s.Logf("DeleteRepo is not supported: %v", err)
		return
	} else if err != nil {
		s.Fatalf("DeleteRepo(%s) failed: %v", repo.Name, err)
	}
	for _, ref := range []string{"v1", "v2", img.Digest.String(), storeImage(138).Digest.String()} {
		s.wantNoManifest(repo, ref, "after the deletion of the repository")
	}
	for _, in := range others {
		s.wantManifest(in, "v1", manifestOf(img, "v1"))
		s.wantWholeBlob(in, img.Layers[0])
	}
	s.wantNoRepo(repo, others)
	s.put(repo, storeImage(138), "v2")
	s.wantManifest(repo, "v2", manifestOf(storeImage(138), "v2"))
	s.wantNoManifest(repo, "v1", "when the repository was made anew")
}

// wantNoRepo checks that the repository is not listed, and that the others are.
func (s *storeTest) wantNoRepo(repo pullthrough.Repo, others []pullthrough.Repo) {
	s.Helper()
	if creator, ok := s.store.(pullthrough.RepoCreator); ok {
		if exists, err := creator.RepoExists(s.Context(), repo); exists || err != nil {
			s.Errorf("RepoExists(%s) returned %t, %v after DeleteRepo", repo.Name, exists, err)
		}
	}
	if lister, ok := s.store.(pullthrough.RepoLister); ok {
		names, err := lister.Repos(s.Context(), repo.Account, repo.Region)
		if err != nil {
			s.Errorf("Repos failed: %v", err)
		}
		var want []string
		for _, in := range others {
			want = append(want, in.Name)
		}
		s.wantNames("Repos after DeleteRepo", names, want)
	}
}

// checkDeleteTogether is about what a put and a deletion leave when they meet.
func checkDeleteTogether(s *storeTest) {
	repo, img := storeRepo("deleted-together"), storeImage(139)
	deleter := s.store.(pullthrough.ImageDeleter)
	s.put(repo, img, "stays")
	if err := deleter.DeleteImage(s.Context(), repo, "none"); errors.Is(err, errors.ErrUnsupported) {
		return
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 20 {
				tag := fmt.Sprint("v", i%3)
				if err := s.store.PutManifest(s.Context(), repo, manifestOf(img, tag)); err != nil {
					s.Errorf("PutManifest beside deletions failed: %v", err)
				}
				if worker%2 == 0 {
					continue
				}
				if err := deleter.DeleteImage(s.Context(), repo, tag); err != nil && !errors.Is(err, fs.ErrNotExist) {
					s.Errorf("DeleteImage beside puts failed: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 3 {
		tag := fmt.Sprint("v", i)
		s.putManifest(repo, manifestOf(img, tag))
		s.wantManifest(repo, tag, manifestOf(img, tag))
	}
	s.wantManifest(repo, "stays", manifestOf(img, "stays"))
}
