package pullthrough

import (
	"bytes"
	"context"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/serve"
)

// Repo names a repository of one private registry. It is comparable.
type Repo struct {
	Account string // 12-digit account id; a host with one account may leave it empty
	Region  string // for example "us-east-1"; a host with one Region may leave it empty
	Name    string // "docker-hub/library/alpine"
}

// Store is where images live: four methods over the host's maps, files or
// buckets. It must be safe for concurrent use.
//
// A miss is an error that Is [io/fs.ErrNotExist]. Any other error is a failure and
// never taken for a miss. Account, Region and Name are one key: what one repository
// has, no other one shows. Puts are idempotent: what is there stays. A put that fails
// keeps nothing and takes nothing away. A Store may refuse what it does not keep, such
// as another account: a put of that returns an error that Is [errors.ErrUnsupported]
// and keeps nothing, and a look-up is a miss. A look-up that fails in place of that is 500
// to clients where no rule covers the repository. The proxy gives a Store verified
// content only, and calls it without any lock of its own held. A Store that fails or
// panics harms no pull: the content is served all the same, and fetched again next time.
//
// Manifest and Blob are called on the way of each request, with the request's own
// context. A Store that blocks there and does not heed the context holds up that
// request, and no other. The context of a put is not that of a request: a put
// outlives the client that caused it, and takes as long as it takes. It ends when
// [Proxy.Shutdown] runs out of time; then a Store should return soon.
// 64 puts of manifests and eight of blobs run at a time; of manifests fewer where the
// process may have few files open. Others wait for their turn as long as any of these reads or ends. When none has for a minute, or when a
// thousand wait, what comes next is served and not stored, and an event says so.
//
// What a Store returns is never written to, by the Store either: it puts a changed copy
// in its place. A Body that is an *os.File, or wraps one and has its SyscallConn, is sent by the kernel
// straight from the file: a Store that must look at the bytes on their way out
// hides the file behind a type of its own.
type Store interface {
	// Manifest returns the manifest that ref, a tag or a digest, names in repo.
	Manifest(ctx context.Context, repo Repo, ref string) (*Manifest, error)

	// PutManifest stores m, creates the repository if need be, and moves m.Tag,
	// if set, in one step. The Store may keep m and must not change it. It is not
	// called with a context that has ended.
	//
	// Content that is stored already keeps all that the host knows of it, such as
	// its push time. With m.Source == [SourceRevalidated] only the tag's
	// CheckedAt changes, even where tags are immutable; nothing does where the tag
	// names another digest by then. A tag that must not move is an error that Is
	// [ErrImmutable].
	PutManifest(ctx context.Context, repo Repo, m *Manifest) error

	// Blob returns the blob d if it is visible in repo: a blob that only another
	// repository has is a miss.
	Blob(ctx context.Context, repo Repo, d digest.Digest) (*Blob, error)

	// PutBlob stores the desc.Size bytes of r under desc.Digest and makes them
	// visible in repo. r is local and verified. It ends after desc.Size bytes, reports
	// a body that is shorter as an error, and fails once ctx has ended, so a Store that
	// reads all and keeps it is right. It may be read more than once and must not be
	// used after PutBlob returns. The Store holds no lock while it reads r: other calls
	// go on meanwhile, and a read may fail or panic. desc.MediaType is
	// "application/octet-stream".
	PutBlob(ctx context.Context, repo Repo, desc ocispec.Descriptor, r io.ReadSeeker) error
}

// RepoCreator is what a [Store] may also be, where repositories are more than the
// images in them: it says which there are, and makes the one that a pull needs
// with what the host has for it, such as a creation template. Where a Store is
// none, a repository is there as soon as something is put into it. Such a Store may have
// RepoExists alone, or be a [TagLister]: then what is missing of a repository that is there
// is "manifest unknown" or "blob unknown", also where no rule covers it. Of any other Store
// it is "name unknown".
type RepoCreator interface {
	// RepoExists reports whether the repository is there. It is asked on misses.
	RepoExists(ctx context.Context, repo Repo) (bool, error)
	// CreateRepo makes the repository, once upstream has shown that it has the
	// image and before anything of it is put. r is the request that caused it. That
	// the repository is there already is no error. An error refuses the pull: "name
	// unknown", as in Amazon ECR, unless it is an [*Error] of its own.
	CreateRepo(ctx context.Context, repo Repo, rule Rule, r Request) error
}

// TagLister is what a [Store] may also be, for GET /v2/<name>/tags/list.
type TagLister interface {
	// Tags returns the tags of the repository, in any order. A repository that is
	// not there is an error that Is [io/fs.ErrNotExist].
	Tags(ctx context.Context, repo Repo) ([]string, error)
}

// RepoLister is what a [Store] may also be, for GET /v2/_catalog.
type RepoLister interface {
	// Repos returns the names of the repositories of one account in one Region, in
	// any order.
	Repos(ctx context.Context, account, region string) ([]string, error)
}

// ManifestLister is what a [Store] may also be, for a control plane that shows what is
// stored, whoever has stored it. Package ecrapi is one.
type ManifestLister interface {
	// Manifests yields the digest of each manifest in the repository once, in any order:
	// tagged and untagged ones, indexes and what they refer to. A repository that is not
	// there is an error that Is [io/fs.ErrNotExist]; an error is the last that is yielded.
	// To list is no use: it does not keep an image from being evicted.
	Manifests(ctx context.Context, repo Repo) iter.Seq2[digest.Digest, error]
}

// ImageDeleter is what a [Store] may also be, for [Proxy.DeleteImage] and
// [Proxy.DeleteRepo]. What it deletes need not be gone from its disk at once, but no
// later call finds it. A client that reads a deleted blob reads on, or its read fails.
type ImageDeleter interface {
	// DeleteImage deletes what ref names in the repository: of a tag the tag alone, of a
	// digest the manifest with all its tags. Blobs, and the manifests of an index, stay
	// until the Store has a use for their room. Where there is nothing to delete the error
	// Is [io/fs.ErrNotExist]. A Store that cannot delete says so by an error that Is
	// [errors.ErrUnsupported].
	DeleteImage(ctx context.Context, repo Repo, ref string) error
	// DeleteRepo deletes the repository with all that is in it. Repositories whose names
	// are longer, by another component, stay. The errors are those of DeleteImage.
	DeleteRepo(ctx context.Context, repo Repo) error
}

// ReferrerStore is what a [Store] may also be: it keeps lists of referrers of manifests
// that it has. The lists of other subjects that were used last are kept in memory, and all
// where a Store is none.
type ReferrerStore interface {
	// Referrers returns the list kept for subject, and when upstream confirmed it.
	// A miss is an error that Is [io/fs.ErrNotExist].
	Referrers(ctx context.Context, repo Repo, subject digest.Digest) (list *ocispec.Index, checked time.Time, err error)
	// PutReferrers keeps the list in place of the one before. The Store must not
	// change it.
	PutReferrers(ctx context.Context, repo Repo, subject digest.Digest, list *ocispec.Index, checked time.Time) error
}

// BlobStager is what a [Store] may also be: it lends the place where a download
// goes, so that storing the blob is a rename and no copy. StageBlob is called while
// upstream is asked: where that has no such blob, Abort follows. A Store whose
// StageBlob fails, or takes ten seconds, is given the blob by PutBlob in the end.
//
// A Store may also keep what has come of downloads that ended early, so that the next one
// goes on from there. It has one more method then, and its Stages have three:
//
//	ResumeBlob(ctx context.Context, repo Repo, d digest.Digest, key string) (Stage, error)
//
//	KeepAs(key string, size int64)
//	Have() (size int64, have [][2]int64)
//	Keep() error
//
// KeepAs says of a download under way what it is to be kept as, as one of a blob of size
// bytes, even if the process is killed. From then on, and after ResumeBlob, WriteAt is
// called by several goroutines, in any order. Keep is called in place of Commit or Abort: the content stays, and
// is not verified. ResumeBlob returns the Stage that was left under the key; until it
// ends nobody else gets it. A miss is an error that Is [io/fs.ErrNotExist]. Have is which
// bytes of it are there, each from its first up to its last, that excluded. The key is a hash of the account,
// the Region, the rule, the upstream, the repository and the digest: nothing may be
// resumed under another one.
type BlobStager interface {
	StageBlob(ctx context.Context, repo Repo, d digest.Digest) (Stage, error)
}

// Stage is the place of one download, empty at first. Nothing in it is visible
// in the Store before Commit. WriteAt is called by one goroutine, in order and
// without gaps; ReadAt and Open may be called by others at the same time. After
// Commit or Abort, of which exactly one is called once, ReadAt and Open may
// fail; files that Open returned before stay readable until they are closed. A
// Stage that blocks in WriteAt holds up its own download.
//
// A Stage may also have a method Sparse() bool, called once at the beginning. If it returns
// true, several goroutines call WriteAt at a time, in any order and with gaps, but no byte
// twice; before Commit all bytes are there. Then what a client reads far ahead, and what
// comes over several connections ([Policy.Connections]), goes where it belongs at once, and
// is not written twice.
type Stage interface {
	io.WriterAt
	io.ReaderAt
	// Open returns a file of its own, at offset 0, with what has been written and
	// what will be. It is used for reading only. An error costs speed, no more.
	Open() (*os.File, error)
	// Commit makes the content, desc.Size verified bytes, the repository's blob
	// desc.Digest. That the Store has the blob already is no error. When Commit
	// fails it forgets the content, as Abort does.
	Commit(ctx context.Context, desc ocispec.Descriptor) error
	// Abort forgets the content.
	Abort() error
}

// Manifest is an image manifest, index or artifact manifest. It is read-only
// once it has been handed to or by a [Proxy], and then safe for concurrent use.
type Manifest struct {
	Descriptor ocispec.Descriptor // MediaType, Digest, Size; the digest is of Content, always
	Content    []byte             // upstream's bytes, never encoded again
	Tag        string             // set when asked for, or stored, by tag
	CheckedAt  time.Time          // when upstream last confirmed Tag; zero: pushed locally, never checked
	Origin     string             // host of the upstream it came from, with its port if it has one; "": pushed locally
	Source     Source             // how this answer came about; a Store need not keep it

	// KeepLocal is set for a put by [Policy.KeepLocal]: where Tag was pushed locally
	// (its Origin is ""), it must not move, and the put is an [ErrImmutable]. A Store that
	// looks, and moves the tag, under one lock loses no push. One that ignores this may
	// lose a push of that very moment: the proxy has looked right before. A Store need not
	// keep it.
	KeepLocal bool
}

// Blob is a layer, a config or any other blob.
type Blob struct {
	// Descriptor has Digest and Size. A Store may leave Size 0 if Body can seek.
	Descriptor ocispec.Descriptor
	// Body has the content, from its first byte. It must be closed, and is not
	// safe for concurrent use. What a [Proxy] returns is an io.Seeker if it comes
	// from a download, or if the Store's Body is one; reads block while the
	// download runs, and one that fails means that the content was wrong or cut.
	//
	// A Body that is an [net/http.Handler] writes the whole answer itself, for
	// example a redirect to a bucket.
	Body   io.ReadCloser
	Source Source

	writes *serve.Watch // of the Proxy that returned it; nil: none has
}

// NewBlob returns a blob whose Body reads content, which is shared and must
// not change. The Source is [SourceHit].
func NewBlob(d digest.Digest, content []byte) *Blob {
	return &Blob{
		Descriptor: ocispec.Descriptor{MediaType: serve.MediaTypeBlob, Digest: d, Size: int64(len(content))},
		Body:       &memoryBody{bytes.NewReader(content)},
	}
}

// memoryBody is a bytes.Reader, with its WriterTo, that can be closed.
type memoryBody struct{ *bytes.Reader }

func (memoryBody) Close() error { return nil }

// FillMode says how much of an image a pull brings in.
type FillMode int

const (
	// FillLazy brings in what clients ask for. It is the zero value, and a
	// departure from Amazon ECR.
	FillLazy FillMode = iota
	// FillBackground brings in, after a manifest, all that it refers to, children
	// of every platform included, in the background, as Amazon ECR does. A stored
	// manifest that this process has not seen whole is looked at when it is pulled.
	FillBackground
	// FillEager is FillBackground for Stores that check references: a manifest is
	// put after its children and blobs. Clients do not wait for that. What upstream does
	// not have (404) is not waited for; while a part has failed or was refused, the
	// manifest is served and not stored.
	FillEager
)

// Source says how an answer came about.
type Source int

const (
	SourceHit         Source = iota // it was stored
	SourceFill                      // it was fetched from upstream for this request
	SourceShared                    // it was being fetched for another request already
	SourceRevalidated               // it was stored, and upstream has just confirmed the tag
	SourceStale                     // it was stored, and upstream could not be asked
)

// String returns "hit", "fill", "shared", "revalidated" or "stale".
func (s Source) String() string {
	switch s {
	case SourceHit:
		return "hit"
	case SourceFill:
		return "fill"
	case SourceShared:
		return "shared"
	case SourceRevalidated:
		return "revalidated"
	case SourceStale:
		return "stale"
	}
	return "unknown"
}

// Request is one pull.
type Request struct {
	Repo   Repo
	Ref    string // tag or digest; of a blob always a digest
	Head   bool   // an existence check: never counts as a pull
	Caller string // opaque, for example a principal ARN
}

// Event says what happened. Credentials and tokens are in none of its fields.
type Event struct {
	Kind     string
	Request  Request // the request; of a fetch only Repo and Ref are set
	Object   string  // of a fetch: EventManifest, EventBlob or EventReferrers, what was fetched; "" of a request, and with Missing
	Part     bool    // of a fetch: nobody asked for it, it is part of an image that is being imported
	Rule     string  // of a fetch: the prefix of the rule it went by; else ""
	Digest   string  // of the content; "" on failure
	Source   Source  // of the answer; SourceFill for a fetch
	Bytes    int64   // length of the content; 0 on failure
	Upstream int     // requests that a fetch made to upstream, tokens included; 0 for a request
	// Connections is how many connections have brought a blob at a time, at most; 0 of
	// anything else, and of a blob that was not fetched.
	Connections int
	Duration    time.Duration // until the answer was there, or the fetch was committed
	Err         error         // nil: it went well. EventStoreFailed: what the Store said

	// What else a fetch has found out.
	Anonymous   bool     // the credentials were refused, and it went without (Policy.AnonymousFallback)
	WrongDigest bool     // upstream named another digest than the manifest's content has, and has nothing under that
	Warnings    []string // texts of upstream's Warning headers, 4096 bytes at most

	// Missing is what an import could not bring in, 1000 objects at most: the event is
	// about the whole image, which has Digest, and Part is set. Err says why; it is nil
	// where these are foreign layers, which no registry is meant to have.
	Missing []ocispec.Descriptor
}

// What [Event.Kind] tells apart.
const (
	EventManifest    = "manifest"     // a manifest was asked for
	EventBlob        = "blob"         // a blob was asked for
	EventReferrers   = "referrers"    // a list of referrers was asked for
	EventFetch       = "fetch"        // one of these was fetched from upstream, or could not be
	EventStoreFailed = "store-failed" // the Store failed; the pull went on without it
)

// Download is a blob on its way from an upstream registry to its clients, as it
// stood when [Proxy.Downloads] was called.
type Download struct {
	Repo     Repo
	Digest   digest.Digest
	Upstream string    // its host
	Part     bool      // an import has begun it, no client
	Began    time.Time // when upstream answered, by Proxy.Now
	Size     int64     // in bytes; -1: nobody knows yet
	Written  int64     // bytes that have come from upstream
	Readers  []int64   // how far each client has got, the slowest first; clients that a Store's file serves are not among them

	// Connections is how many connections to upstream bring content at the moment: more than
	// one by [Policy.Connections], or for clients that read far ahead. 0: all has come.
	Connections int
	Ahead       int64 // of Written, the bytes that have come before it was their turn
	Retries     int   // how often upstream has broken off, and was asked for the rest
}

// ImportOptions choose what [Proxy.Import] brings in. The zero value is the
// whole image.
type ImportOptions struct {
	// Platforms picks children of an index by OS and architecture, and by variant
	// if that is set. nil: all children, attestations included. What an index lists
	// that is no manifest, such as the layers of a build cache, always comes.
	Platforms []ocispec.Platform
	// Progress is told of each manifest and blob when it begins, as it grows, and when it
	// is stored or will not be. done is how many of its bytes are here, of d.Size; stored
	// says that the Store has it, and err why this import does not bring it in: nil if it
	// has, or goes on. Progress is called by several goroutines, must be safe for that,
	// and must not block for long. One that panics ends the import. nil: nobody is told.
	Progress func(d ocispec.Descriptor, done int64, stored bool, err error)
}

func (o ImportOptions) wants(d ocispec.Descriptor) bool {
	if o.Platforms == nil {
		return true
	}
	return d.Platform != nil && slices.ContainsFunc(o.Platforms, func(p ocispec.Platform) bool {
		return p.OS == d.Platform.OS && p.Architecture == d.Platform.Architecture && (p.Variant == "" || p.Variant == d.Platform.Variant)
	})
}
