package shelf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
)

const (
	// noteEvery is how much is written before it is noted.
	noteEvery = 1 << 20
	// maxLoose is how many stretches wait to be noted, one for each connection.
	maxLoose = 32
)

// Item is a download that this process has taken. File has its content, and is the
// caller's to close when the Item has ended. An Item ends by one of Keep, Drop and Leave.
// Its other methods are safe for concurrent use.
type Item struct {
	File *os.File

	shelf *Shelf
	key   string
	size  int64
	have  []extent.Span // when it was taken
	aside bool          // it had been put aside by Keep

	mu     sync.Mutex
	note   *os.File
	failed bool          // the note cannot be written any more; what it says is true
	noted  int           // how many stretches are in it
	bytes  int64         // of these, about
	loose  []extent.Span // what was written and is not in it
	ended  bool
}

// Size is the length of the whole content.
func (it *Item) Size() int64 { return it.size }

// Have is what was there when the download was taken: sorted, and nothing of the last
// [Tail] bytes.
func (it *Item) Have() []extent.Span { return it.have }

// Kept is how many bytes [Item.Keep] had put aside when the download was taken; 0: its
// process was killed, and has told nobody.
func (it *Item) Kept() int64 {
	if !it.aside {
		return 0
	}
	return total(it.have)
}

// Name is where the content is, below the shelf's Root.
func (it *Item) Name() string { return path.Join(it.shelf.Dir, it.key, dataName) }

func (it *Item) noteFile() string { return path.Join(it.shelf.Dir, it.key, noteName) }

// begin writes the first line of a new note.
func (it *Item) begin(name string) (err error) {
	it.note, err = it.shelf.Root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err = it.note.WriteString(newNote(it.size).text()); err != nil {
		return errors.Join(err, it.note.Close())
	}
	return nil
}

// resume reads the note of a download that was taken. The error Is [fs.ErrNotExist] where
// it is of no use.
func (it *Item) resume() error {
	old, used, err := it.shelf.readNote(it.key)
	switch {
	case errors.Is(err, errNote):
		return errors.Join(fs.ErrNotExist, err)
	case err != nil:
		return err
	}
	data, err := it.File.Stat()
	if err != nil {
		return err
	}
	it.size, it.aside = old.Size, old.aside
	it.have = extent.Clip(extent.Union(old.trusted()), min(old.Size-Tail, data.Size()))
	it.bytes = total(it.have)
	if it.bytes < Least || it.shelf.now().Sub(used) >= maxAge {
		return fs.ErrNotExist
	}
	return it.goOn(old)
}

// goOn begins a note of what is trusted, in place of the old one.
func (it *Item) goOn(old note) (err error) {
	n := newNote(old.Size)
	n.spans = extent.Union(old.spans[:old.synced])
	n.synced = len(n.spans)
	n.spans = append(n.spans, extent.Union(old.trusted()[old.synced:])...)
	it.noted = len(n.spans)
	name := it.noteFile() + ".new"
	if it.note, err = it.shelf.Root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if _, err = it.note.WriteString(n.text()); err == nil {
		err = it.shelf.Root.Rename(name, it.noteFile())
	}
	if err != nil {
		return errors.Join(err, it.note.Close())
	}
	return nil
}

// Wrote notes that n bytes at off were written to File. Stretches that meet need not come
// in order.
func (it *Item) Wrote(off, n int64) {
	it.mu.Lock()
	defer it.mu.Unlock()
	for i := range it.loose {
		s := &it.loose[i]
		if s.To != off {
			continue
		}
		if s.To += n; s.Len() >= noteEvery {
			done := *s
			it.loose = append(it.loose[:i], it.loose[i+1:]...)
			it.writeLocked(done)
		}
		return
	}
	if len(it.loose) >= maxLoose {
		it.writeLocked(it.loose...)
		it.loose = it.loose[:0]
	}
	it.loose = append(it.loose, extent.Span{From: off, To: off + n})
}

// writeLocked adds lines to the note.
func (it *Item) writeLocked(spans ...extent.Span) {
	if it.failed || it.ended || len(spans) == 0 {
		return
	}
	var b strings.Builder
	for _, s := range spans {
		fmt.Fprintln(&b, spanLine(s.From, s.Len()))
	}
	if _, err := it.note.WriteString(b.String()); err != nil {
		it.failed = true
		return
	}
	it.noted += len(spans)
	for _, s := range spans {
		it.bytes += s.Len()
	}
}

// end has nothing more noted. It reports whether something was up to now.
func (it *Item) end() bool {
	it.mu.Lock()
	defer it.mu.Unlock()
	if it.ended {
		return false
	}
	it.writeLocked(it.loose...)
	it.loose, it.ended = nil, true
	return true
}

// Keep lets go of the download, for the next one to go on. From then on it is nobody's; what
// is on the disk by the end of Keep outlives a power failure, too. Less than [Least] is
// dropped. Keep returns how many bytes are kept, about.
func (it *Item) Keep() int64 {
	if !it.end() {
		return 0
	}
	if it.bytes < Least {
		it.drop()
		return 0
	}
	filelock.Unlock(it.File)
	it.shelf.unclaim(it.key)
	if it.File.Sync() == nil && !it.failed {
		_, _ = fmt.Fprintf(it.note, "%s\n%s\n", syncedLine(it.noted), asideLine) // without it less is trusted
	}
	_ = it.note.Close()
	it.shelf.Tidy()
	return it.bytes
}

// Drop removes the download. Who has File open reads on.
func (it *Item) Drop() {
	if it.end() {
		it.drop()
	}
}

func (it *Item) drop() {
	it.shelf.remove(it.key)
	_ = it.note.Close() // it is gone
	filelock.Unlock(it.File)
	it.shelf.unclaim(it.key)
}

// Leave moves the directory of the download, with the content alone in it, to the name dir
// below the shelf's Root. It belongs to the caller from then on.
func (it *Item) Leave(dir string) error {
	if err := it.shelf.Root.Rename(path.Join(it.shelf.Dir, it.key), dir); err != nil {
		it.Drop()
		return err
	}
	defer it.shelf.unclaim(it.key)
	it.end()
	_ = it.note.Close() // nobody reads it any more
	err := it.shelf.Root.Remove(path.Join(dir, noteName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}
