package shelf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

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
// disk. Lines are only added, each by one write, after what they tell of was done.
type note struct {
	header
	spans  []extent.Span // as they were written
	synced int           // so many of them are on the disk
	aside  bool          // the last line says so of all: nobody has added to it since
	length int           // of the lines that are whole
}

var errNote = errors.New("shelf: the note is damaged")

// parseNote reads a note up to the first line that is not whole.
func parseNote(text []byte) (n note, err error) {
	line, rest, whole := bytes.Cut(text, []byte("\n"))
	if err := json.Unmarshal(line, &n.header); err != nil || !whole || n.Version != noteVersion || n.Size <= 0 {
		return note{}, errNote
	}
	for {
		n.length = len(text) - len(rest)
		line, rest, whole = bytes.Cut(rest, []byte("\n"))
		if !whole || !n.add(string(line)) {
			return n, nil
		}
	}
}

// add reads a line.
func (n *note) add(line string) bool {
	var s extent.Span
	var length int64
	if k, err := fmt.Sscanf(line, "%d %d", &s.From, &length); err == nil && k == 2 && line == spanLine(s.From, length) {
		if s.From < 0 || length <= 0 || length > n.Size-s.From {
			return false
		}
		s.To = s.From + length
		n.spans, n.aside = append(n.spans, s), false
		return true
	}
	var synced int
	if _, err := fmt.Sscanf(line, "synced %d", &synced); err != nil || synced < 0 || synced > len(n.spans) {
		return false
	}
	n.synced = max(n.synced, synced)
	n.aside = n.synced == len(n.spans)
	return true
}

func spanLine(from, length int64) string { return fmt.Sprintf("%d %d", from, length) }

// trusted is what is certainly there: all that was noted while the system has not been
// started anew, since its cache outlives a process, and else what was synced.
func (n *note) trusted() []extent.Span {
	if n.Boot != "" && n.Boot == bootID() {
		return n.spans
	}
	return n.spans[:n.synced]
}

// text is a new note of spans that are on the disk.
func text(size int64, spans []extent.Span) string {
	line, _ := json.Marshal(header{noteVersion, size, bootID()}) // it has numbers and a string
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", line)
	for _, s := range spans {
		fmt.Fprintln(&b, spanLine(s.From, s.Len()))
	}
	if len(spans) > 0 {
		fmt.Fprintf(&b, "synced %d\n", len(spans))
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
