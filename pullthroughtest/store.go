package pullthroughtest

import (
	"context"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// TestStore checks that a Store keeps the promises of [pullthrough.Store], with one subtest for each promise. A host runs
// it against its own Store. What it complains about has three parts: what was seen, the rule in the words of package
// pullthrough, and the remedy.
//
//	func TestStore(t *testing.T) {
//		pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
//			return mystore.Open(t.TempDir())
//		})
//	}
//
// open returns an empty Store for each subtest and releases it with t.Cleanup. The optional interfaces that the Store
// implements, such as [pullthrough.BlobStager], are checked too. The log names those that it does not implement. Run it
// with -race.
//
// The checks use a few accounts and Regions. They put everything in the order of [pullthrough.FillEager]: a manifest
// after all that it refers to. PutBlob gets the same kind of reader as from a [pullthrough.Proxy]: it ends after
// desc.Size bytes, fails if there are fewer, and fails once the context has ended. PutManifest is not called with an
// ended context.
//
// A Store may refuse sha512 digests, media types of its choice, repository names of more than 200 characters, and all
// accounts and Regions but the first (111122223333 in us-east-1). Then PutManifest and PutBlob return an error, which
// should be one that Is [errors.ErrUnsupported], and keep nothing; Manifest and Blob return one that Is
// [io/fs.ErrNotExist], so that a client reads 404. A Store may also refuse to move a tag, with
// [pullthrough.ErrImmutable]. The log names what it refuses. Times must be kept to the second.
func TestStore(t *testing.T, open func(t *testing.T) pullthrough.Store) {
	t.Helper()
	first := open(t)
	logged := map[string]bool{}
	for _, c := range storeChecks() {
		if c.needs != "" && !storeHas(first, c.needs) {
			if !logged[c.needs] {
				t.Logf("the Store is no pullthrough.%s: nothing of that is checked", c.needs)
			}
			logged[c.needs] = true
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.run(&storeTest{reporter: t, store: open(t), patience: storePatience, rule: c.rule})
		})
	}
}

// storePatience is how long a call may take that must not block.
const storePatience = 10 * time.Second

// reporter is the part of [testing.T] that the checks need.
type reporter interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Context() context.Context
}

// storeCheck is one promise.
type storeCheck struct {
	name  string
	needs string // the optional interface that it checks; "": it applies to every Store
	rule  *storeRule
	run   func(*storeTest)
}

func storeChecks() []storeCheck {
	var all []storeCheck
	for _, some := range [][]storeCheck{
		manifestChecks, tagChecks, nameChecks, blobChecks, readerChecks, contextChecks, togetherChecks, stageChecks, listChecks, referrerChecks, deleteChecks,
	} {
		all = append(all, some...)
	}
	return all
}

// storeHas reports whether the Store implements the optional interface of that name.
func storeHas(store pullthrough.Store, name string) (ok bool) {
	switch name {
	case needsStager:
		_, ok = store.(pullthrough.BlobStager)
	case needsRepos:
		_, ok = store.(pullthrough.RepoLister)
	case needsTags:
		_, ok = store.(pullthrough.TagLister)
	case needsManifests:
		_, ok = store.(pullthrough.ManifestLister)
	case needsDeleter:
		_, ok = store.(pullthrough.ImageDeleter)
	case needsFinder:
		_, ok = store.(repoFinder)
	case needsCreator:
		_, ok = store.(pullthrough.RepoCreator)
	case needsReferrers:
		_, ok = store.(pullthrough.ReferrerStore)
	}
	return ok
}

const (
	needsStager    = "BlobStager"
	needsRepos     = "RepoLister"
	needsTags      = "TagLister"
	needsManifests = "ManifestLister"
	needsDeleter   = "ImageDeleter"
	needsFinder    = "RepoCreator, and has no RepoExists"
	needsCreator   = "RepoCreator"
	needsReferrers = "ReferrerStore"
)
