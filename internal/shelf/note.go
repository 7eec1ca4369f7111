package shelf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

// header is the first line of a note.
type header struct {
	Version int    `json:"v"`
	Size    int64  `json:"size"` // of the whole content
	Boot    string `json:"boot"` // of the system, when it was written; "": nobody knows
}

// noteVersion is the format that is written, and the only one that is read.
const noteVersion = 1

// note is what is known of a download. After the header comes a line "OFFSET LENGTH" for each
// stretch that was written, and a line "synced N" when the first N of these are on the
// disk. The last line is "aside" where the download was put aside, and nobody has taken it
// since. Lines are only added, each by one write, after what they tell of was done.
type note struct {
	header
	spans  []extent.Span // as they were written
	synced int           // so many of them are on the disk
	aside  bool
}

const (
	asideLine = "aside"
	// maxNote is how much of a note is read. One that is longer tells of more than a shelf
	// keeps.
	maxNote = 4 << 20
)

var errNote = errors.New("shelf: the note is damaged")

func newNote(size int64) *note { return &note{header: header{noteVersion, size, bootID()}} }

// readNote returns the note of a download, and when it was written last. The error Is
// errNote where it is damaged.
func (s *Shelf) readNote(key string) (n note, used time.Time, err error) {
	f, err := s.Root.Open(path.Join(s.Dir, key, noteName))
	if err != nil {
		return n, used, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return n, used, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err == nil {
		n, err = parseNote(text)
	}
	return n, info.ModTime(), err
}

// parseNote reads a note up to the first line that is not whole.
func parseNote(text []byte) (n note, err error) {
	line, rest, whole := bytes.Cut(text, []byte("\n"))
	if err := json.Unmarshal(line, &n.header); err != nil || !whole || n.Version != noteVersion || n.Size <= 0 {
		return note{}, errNote
	}
	for {
		line, rest, whole = bytes.Cut(rest, []byte("\n"))
		if !whole || !n.add(string(line)) {
			return n, nil
		}
	}
}

// add reads a line.
func (n *note) add(line string) bool {
	if line == asideLine {
		n.aside = true
		return true
	}
	var s extent.Span
	var length int64
	if k, err := fmt.Sscanf(line, "%d %d", &s.From, &length); err == nil && k == 2 && line == spanLine(s.From, length) {
		if s.From < 0 || length <= 0 || length > n.Size-s.From {
			return false
		}
		s.To = s.From + length
		n.spans = append(n.spans, s)
		return true
	}
	var synced int
	if _, err := fmt.Sscanf(line, "synced %d", &synced); err != nil || line != syncedLine(synced) || synced > len(n.spans) {
		return false
	}
	n.synced = max(n.synced, synced)
	return true
}

func spanLine(from, length int64) string { return fmt.Sprintf("%d %d", from, length) }

func syncedLine(n int) string { return fmt.Sprintf("synced %d", n) }

// trusted is what is certainly there: all that was noted while the system has not been
// started anew, since its cache outlives a process, and else what was synced.
func (n *note) trusted() []extent.Span {
	if n.Boot != "" && n.Boot == bootID() {
		return n.spans
	}
	return n.spans[:n.synced]
}

// text are the lines of a new note.
func (n *note) text() string {
	line, _ := json.Marshal(n.header) // it has numbers and a string
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", line)
	for i, s := range n.spans {
		fmt.Fprintln(&b, spanLine(s.From, s.Len()))
		if i+1 == n.synced {
			fmt.Fprintln(&b, syncedLine(n.synced))
		}
	}
	return b.String()
}

// bootID says since when the system runs; "" where it does not tell.
var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
})

func total(spans []extent.Span) (n int64) {
	for _, s := range extent.Union(spans) {
		n += s.Len()
	}
	return n
}
