package pullthroughtest

import (
	"context"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// TestStore checks that a Store keeps what [pullthrough.Store] promises, one subtest for each promise: what a host runs
// against its own Store.
//
//	func TestStore(t *testing.T) {
//		pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
//			return mystore.Open(t.TempDir())
//		})
//	}
//
// open returns an empty Store for each subtest, and releases it with t.Cleanup. The optional interfaces that it has,
// [pullthrough.BlobStager] and the others, are checked too; which it has not stands in the log. Run it with -race.
//
// The repositories are those of a few accounts and Regions, and everything is put as [pullthrough.FillEager] puts it, a
// manifest after all that it refers to. A Store may refuse, with an error and keeping nothing, digests by sha512, media
// types of its own choice, repository names of more than 200 characters, other accounts and Regions than the first
// (111122223333 in us-east-1) and, with [pullthrough.ErrImmutable], to move a tag: this stands in the log. A time must come back to the second.
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
		t.Run(c.name, func(t *testing.T) { c.run(&storeTest{reporter: t, store: open(t), patience: storePatience}) })
	}
}

// storePatience is how long a Store may take for what must not block at all.
const storePatience = 10 * time.Second

// reporter is what the checks need of a [testing.T].
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
	needs string // the optional interface that it is about; "": it is every Store's
	run   func(*storeTest)
}

func storeChecks() []storeCheck {
	var all []storeCheck
	for _, some := range [][]storeCheck{
		manifestChecks, tagChecks, nameChecks, blobChecks, readerChecks, contextChecks, togetherChecks, stageChecks, listChecks, referrerChecks,
	} {
		all = append(all, some...)
	}
	return all
}

// storeHas reports whether the Store has the optional interface of that name.
func storeHas(store pullthrough.Store, name string) (ok bool) {
	switch name {
	case needsStager:
		_, ok = store.(pullthrough.BlobStager)
	case needsRepos:
		_, ok = store.(pullthrough.RepoLister)
	case needsTags:
		_, ok = store.(pullthrough.TagLister)
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
	needsCreator   = "RepoCreator"
	needsReferrers = "ReferrerStore"
)
