package fill

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// Job says what to fill and how. The funcs are the owner's. The fill's own
// goroutine calls them, one at a time and in the order of the fields, where they
// do not say otherwise, and no client's context reaches them. Digest, Open and Explain must be set.
type Job struct {
	Digest digest.Digest
	Owner  any // for the owner, which finds it in a [Snapshot]; the fill does not look at it

	// MaxBytes is the largest blob. 0: any.
	MaxBytes int64
	// MaxPerLane is how many fills of one Lane receive content at a time. Others wait
	// their turn, for ten seconds at most. 0: any number.
	Lane       any // comparable
	MaxPerLane int
	// Part says that no client wants the fill: an import does. It waits for its turn as
	// long as it takes, until the flights are closed. Fills that clients want go before
	// it, and parts have at most half of the turns and of SpoolBytes. When a client
	// joins it, it waits like one that a client has begun.
	Part bool
	// Orphans is how many fills may finish although nobody reads them, and OrphanBytes
	// how much may be left of them together. Both count the fills of all jobs.
	// 0: none, and a fill whose source is not open yet does not wait for another try of
	// its client: see [flight.Call.Linger].
	Orphans     int
	OrphanBytes int64
	// Retry lets a fill whose content turned out to be damaged, before anybody was
	// shown any of it, receive it once more.
	Retry bool

	// Stored reports whether the Store has got the blob since the caller looked. An
	// error ends the fill. nil: it has not.
	Stored func(ctx context.Context) (bool, error)
	// Open asks for the bytes of span, of a blob of that size; -1: nobody knows it. The empty
	// span is all of it. What comes may be the whole blob all the same. Its source lives as
	// long as ctx.
	Open func(ctx context.Context, span extent.Span, size int64) (Source, error)
	// Key names the content among all that is kept, and says who may share it. Its length is
	// that of a hash. What has come of a blob by the time the fill is given up is then kept
	// by its Place, or in [Options.Dir], and the next fill of the key goes on from there. "":
	// nothing is kept.
	Key string
	// Resume returns the Place that an earlier fill of Key has kept; nil: there is none.
	// nil: never. It is called before Open.
	Resume func(ctx context.Context, key string) Keeper
	// OpenPart asks for the bytes of span, on a connection of their own, and must not
	// wait. The bytes begin at span.From; there may be fewer. An error that Is [ErrLater]
	// says that there may be parts later, any other that there are none of this blob.
	// Several goroutines call it, also beside Open. nil: all content comes in order.
	OpenPart func(ctx context.Context, span extent.Span) (Part, error)
	// Connections is over how many connections a large blob comes: [Job.OpenPart] gives all
	// but the first. Fewer than 2: one.
	Connections int
	// Want is the part that the client wants which begins the fill. If it is far from
	// the start it is asked for beside Open. The zero Want is all.
	Want Want
	// Size returns the length that a manifest has told, -1 if none has. It is asked for
	// Want before Open, and when the source is open, since the manifest may have come
	// meanwhile. It counts only where the source does not say how long the blob is. nil: no
	// manifest is known.
	Size func() int64
	// Place returns where the content goes, nil for a spool's own place. It is called
	// beside Open, on a goroutine of its own; where there is no content the place is
	// aborted. nil: never elsewhere.
	Place func(ctx context.Context) (Place, error)
	// PlaceFailed is told that there is content and no place for it, or that the place
	// failed, and that the rest goes to a file of the spool's own. nil: nobody is told.
	PlaceFailed func(ctx context.Context, err error)
	// Explain puts an error in the owner's words before any client sees it. It gets an
	// [*Error], or an error of one of these funcs. It keeps the cause, for errors.Is.
	// A client's goroutine may call it too, at any time.
	Explain func(error) error
	// Put gives the verified content to the Store: it commits the fill's [Place] if
	// that is [Fill.Whole], or reads it by [Fill.NewReader]. It must commit or abort a
	// Place, or [Fill.Leave] it. It may take as long as it takes, since no client waits for it. Its context
	// ends when the Group's flights are shut down. nil: nobody keeps the content.
	Put func(ctx context.Context, f *Fill) error
	// Ended is told how the fill ended, after Put, unless the blob was stored already.
	// nil: nobody is told.
	Ended func(ctx context.Context, r Result)
}

func (j *Job) maxBytes() int64 {
	if j.MaxBytes > 0 {
		return j.MaxBytes
	}
	return math.MaxInt64
}

// Source is the body of a blob as it comes from upstream. It resumes by itself.
// Its errors are told as they are, so they are in words that clients may read.
type Source interface {
	io.ReadCloser
	// Total is the length that upstream has announced, -1 if it has not.
	Total() int64
	// Offset is where the next byte belongs.
	Offset() int64
	// Until is where the bytes end that Read returns before [Source.Jump], -1 where nobody
	// knows.
	Until() int64
	// Progress is how many bytes have come, with those that had to be passed over; when
	// the last of them came, or the last request was sent; and how many requests in a
	// row were in vain since upstream broke off. It may be called at any time.
	Progress() (received int64, moved time.Time, tries int)
	// Jump goes on at the offset off, up to end. What is between is not read. Read ends
	// with io.EOF there.
	Jump(off, end int64) error
	// Interrupt ends an answer that brings nothing, and the source goes on with
	// another one. It may be called at any time, also while Read blocks.
	Interrupt(cause error)
}

// Want is a part of a blob whose length need not be known.
type Want struct {
	From   int64
	To     int64 // excluded; 0: up to the end
	Suffix int64 // the last bytes, so many; 0: it is From and To
}

// demand is the same as a demand of a blob without end.
func (w Want) demand() extent.Demand {
	if w.To == 0 {
		return extent.Demand{Span: extent.Span{From: w.From, To: 1 << 62}, Open: w.Suffix == 0}
	}
	return extent.Demand{Span: extent.Span{From: w.From, To: w.To}}
}

// ErrLater is for parts that upstream does not give now.
var ErrLater = errors.New("no further connection for the time being")

// Part is some bytes of a blob. It does not resume.
type Part interface {
	io.ReadCloser
	// Total is the length of the whole blob.
	Total() int64
}

// Place is where a spool lies if the owner lends it a place.
type Place interface {
	spool.Place
	// Abort forgets the content. It is called instead of [Job.Put], at most once.
	// What was opened for reading stays readable until Close.
	Abort()
	// Close is called when the last reader has left.
	Close()
	// Sparse reports whether several goroutines may write at a time, each elsewhere, in any
	// order. false: what does not come in order lies elsewhere until it is its turn.
	Sparse() bool
}

// Keeper is a Place that may outlive the fill.
type Keeper interface {
	Place
	// KeepAs says what it is to be kept as. WriteAt then takes bytes in any order, from
	// several goroutines. It is not called for what was kept before.
	KeepAs(key string, size int64)
	// Have is what was kept: the size of the blob, and the bytes that are there, sorted. The
	// last 64 KiB are never among them.
	Have() (size int64, have []extent.Span)
	// Keep is called in place of Abort: the content stays for the next fill.
	Keep()
}

// Result is how a fill ended.
type Result struct {
	Size    int64 // of the blob; 0 where it failed
	Err     error // in the owner's words; nil: the content was right, wherever it is kept
	Spooled bool  // there was a spool for it: clients may have read some of it
	// Connections is how many connections have brought content at a time, at most.
	Connections int
}
