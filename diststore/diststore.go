// Package diststore is a [pullthrough.Store] that keeps images behind a storage
// driver of the CNCF distribution registry: in a bucket of S3, GCS or Azure, or
// in a directory. It is for more than one machine. Package factory of the registry
// makes drivers:
//
//	driver, err := factory.Create(ctx, "s3", map[string]any{"bucket": "images", "region": "eu-central-1"})
//	if err != nil {
//		return err
//	}
//	store := diststore.New(driver)
//	if err := store.CheckFormat(ctx); err != nil {
//		return err
//	}
//	proxy := &pullthrough.Proxy{Store: store, Rules: rules}
//
// The README of this module has the drivers and their parameters.
//
// Keys and bytes are those of package dirstore, so a directory can be copied to a
// bucket and back, and a registry can serve the same bucket:
//
//	docker/registry/v2/blobs/ALG/XX/HEX/data                       content, once
//	docker/registry/v2/repositories/NAME/_layers/ALG/HEX/link      who may see it
//	docker/registry/v2/repositories/NAME/_manifests/revisions/...  the same for manifests
//	docker/registry/v2/repositories/NAME/_manifests/tags/TAG/...   current/link, index/.../link
//	pullthrough/                                                   out of the registry's sight
//
// Any number of proxies share a bucket, each with a [Store] of its own. They need
// no lock: content is stored under its digest, so the second to store it writes the
// same bytes, and a link is written when all that it names is there. Where two
// move a tag at once, one of them is last.
//
// Large content goes through the driver's Writer. With S3 that is a multipart
// upload to the final key, which is not there before the upload is completed.
// Other drivers promise less, so it is written below pullthrough/uploads/ and
// moved. Whatever crashes, nothing partial is ever seen.
//
// An unreadable link, a link to nothing and a manifest without its digest are
// misses, and the next put heals them. A blob is checked by its size: the one that is
// noted beside its link where objects are files, and the one that its manifest says. Where
// nobody has noted it, or the manifest says another one, the object is read in full, once.
//
// The page docs/layout.md tells the whole format. [Store.CheckFormat] refuses a
// bucket that a newer version of this package has written.
package diststore

import (
	"fmt"
	"sync/atomic"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

// Store is a [pullthrough.Store] over a storage driver. It is also a
// [pullthrough.RepoCreator], [pullthrough.TagLister], [pullthrough.RepoLister] and
// [pullthrough.ReferrerStore]. It is safe for concurrent use and needs no closing. It
// has no goroutines of its own between calls, but while it reads an object in full. The
// fields must not change after the first use.
//
// What is not there is an error that Is [io/fs.ErrNotExist]; whatever else the
// driver says is a failure, of which errors.Is finds the cause, such as
// syscall.ENOSPC. What could be a credential is left out of its text.
type Store struct {
	// Account and Region are those whose repositories stand in the bucket under
	// their plain names; all others need both. Empty: the plain names are those of
	// a [pullthrough.Repo] without account and Region. All proxies on a bucket must
	// have the same.
	Account, Region string

	// Redirect has clients fetch blobs from the bucket, by a URL that the driver
	// signs, where it can (S3, GCS and Azure do). The clients must reach the
	// bucket. Whoever has the URL can read the blob until it expires, 20 minutes
	// with S3. False: all bytes come from the proxy.
	Redirect bool

	bucket    bucket
	manifests *filing.Manifests
	sizes     *filing.Sizes
	reads     *verify.Reads
	small     *verify.Reads // of objects of up to [verify.Small], which do not wait for larger ones
	places    places
	habits    habits
	sweptAt   atomic.Int64 // nanoseconds since 1970: when abandoned uploads were looked for
}

// New returns a store over driver, which must not be nil. It makes no request: see
// [Store.CheckFormat].
func New(driver storagedriver.StorageDriver) *Store {
	h := habitsOf(driver.Name())
	sizes := filing.NewSizes()
	return &Store{
		bucket: bucket{driver, h.wholePuts}, manifests: filing.NewManifests(tagAge, linkAge, sizes),
		sizes: sizes, reads: verify.New(), small: verify.New(), places: newPlaces(), habits: h,
	}
}

// habits are what drivers do differently.
type habits struct {
	// wholePuts: PutContent replaces an object in one step. Where it does not, blobs
	// are moved to their names, and small objects read by GetContent, which waits
	// for puts.
	wholePuts bool
	// atomic: what a Writer writes is not there before Commit, and then whole.
	atomic bool
	// files: objects are files on a disk, which may cut them. Their sizes are noted.
	files bool
	// emptyDirs: a directory stays when all in it has gone.
	emptyDirs bool
}

// habitsOf goes by the drivers' own names. Nothing is expected of the others, nor
// of those whose promises we could not try.
func habitsOf(driver string) habits {
	switch driver {
	case "s3aws":
		return habits{wholePuts: true, atomic: true}
	case "gcs", "azure":
		return habits{wholePuts: true}
	case "filesystem":
		return habits{wholePuts: true, files: true, emptyDirs: true}
	case "inmemory":
		return habits{files: true, emptyDirs: true}
	}
	return habits{files: true}
}

// owner is whose repositories have plain names.
func (s *Store) owner() layout.Owner { return layout.Owner{Account: s.Account, Region: s.Region} }

// during says what was being done to what. A miss stays a miss.
func during(err error, op string, repo pullthrough.Repo, ref string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("diststore: %s %s %s: %w", op, repo.Name, ref, err)
}

// tidyTime is how long what must be undone after a failure may take.
const tidyTime = 10 * time.Second
