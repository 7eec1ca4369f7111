package debug

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// This file makes all words and figures of the page. page.js makes the same ones again.

// tile is a figure at the top of the page, with a note.
type tile struct{ Name, Value, Note string }

func tilesOf(s *state) []tile {
	t := s.Totals
	answered := t.Requests - t.Failed
	return []tile{
		{"Hit ratio", ratioText(t.Stored, answered), countText(t.Stored) + " of " + pluralText(answered, "answer", "answers") + " from the Store, " + countText(t.Shared) + " shared a fetch"},
		{"Requests", countText(t.Requests), countText(t.Heads) + " of them HEAD"},
		{"Upstream requests", countText(t.Upstream), "for " + pluralText(t.Fetches, "fetch", "fetches")},
		{"Sent", bytesText(t.Sent), bytesText(t.Bytes) + " if read whole, " + bytesText(t.FetchedBytes) + " fetched"},
		{"Running downloads", countText(t.Running), pluralText(t.Readers, "reader", "readers")},
		{"Failed requests", countText(t.Failed), pluralText(t.FailedFetches, "failed fetch", "failed fetches") + ", " + pluralText(t.StoreFailures, "failure of the Store", "failures of the Store")},
		{"Warnings", countText(t.Warnings), countText(t.Anonymous) + " without credentials, " + pluralText(t.WrongDigests, "wrong digest", "wrong digests")},
	}
}

// none returns the text that stands in the place of an empty list.
func (s *state) none(text string) string {
	if s.Filter != "" {
		return "Nothing of such a repository."
	}
	return text
}

// facts returns the texts below the download's bar.
func (d download) facts() []string {
	facts := []string{bytesText(d.Written) + " of unknown size"}
	if d.Size >= 0 {
		facts[0] = bytesText(d.Written) + " of " + bytesText(d.Size) + " (" + shareText(d.Written, d.Size) + ")"
	}
	if d.Size >= 0 && d.Written >= d.Size {
		facts = append(facts, "complete")
	} else {
		facts = append(facts, bytesText(d.Rate)+"/s")
	}
	if d.Connections > 1 {
		facts = append(facts, "over "+countText(d.Connections)+" connections")
	}
	if d.Ahead > 0 {
		facts = append(facts, bytesText(d.Ahead)+" ahead of their turn")
	}
	if d.Retries > 0 {
		facts = append(facts, "asked for the rest "+pluralText(d.Retries, "time", "times"))
	}
	return append(facts, d.readersText(), "from "+d.Upstream, "since "+clockText(d.Began))
}

// inOrder returns how many bytes have come without a gap.
func (d download) inOrder() int64 { return d.Written - d.Ahead }

// lingers reports whether the download's clients have left it, and it goes on.
func (d download) lingers() bool {
	return d.Readers == 0 && !d.Part && (d.Size < 0 || d.Written < d.Size)
}

// shownPlaces is how many places of readers are listed in the text. The bar shows them all.
const shownPlaces = 6

func (d download) readersText() string {
	if d.lingers() {
		return "its readers have left"
	}
	text := pluralText(d.Readers, "reader", "readers")
	for i, p := range d.Places {
		switch {
		case i == shownPlaces:
			return text + ", …"
		case i == 0:
			text += " at "
		default:
			text += ", "
		}
		text += bytesText(p.At)
		if p.Readers > 1 {
			text += " ×" + countText(p.Readers)
		}
	}
	return text
}

// barPosition returns the position of an offset on the download's bar, as a CSS
// percentage. If the size is unknown, all readers are shown at the start.
func (d download) barPosition(at int64) string {
	if d.Size <= 0 {
		return "0%"
	}
	n := min(at, d.Size) * 1000 / d.Size
	return fmt.Sprintf("%d.%d%%", n/10, n%10)
}

// pin returns the width of the marker: it grows with the number of digits.
func (p place) pin() int { return 3 + len(strconv.Itoa(p.Readers)) }

// what returns what waits.
func (p pending) what() string {
	object := p.Object
	if object == "" {
		object = "other"
	}
	switch {
	case p.Lingers:
		return "fetch " + object
	case p.Checks:
		return "check stored tags"
	case p.Image:
		return "import image"
	}
	return object + " requests"
}

// of returns what it is about: an object, a repository, or all of a rule's.
func (p pending) of() string {
	if p.Repo == "" {
		return p.Rule
	}
	return entry{Repo: p.Repo, Ref: p.Ref}.name()
}

// why returns what it waits for.
func (p pending) why() string {
	switch {
	case p.Lingers:
		return "its clients have left"
	case p.Image:
		return "it is not whole"
	case p.Status > 0:
		return p.Upstream + ": " + strconv.Itoa(p.Status)
	}
	return p.Upstream + ": failed"
}

// next returns when it is tried again.
func (p pending) next() string {
	if p.Lingers {
		return ""
	}
	return "in " + durationText(p.Micros)
}

// label returns the first column of an event.
func (e entry) label() string {
	switch {
	case e.Object != "" && e.Part:
		return e.Kind + " " + e.Object + ", part"
	case e.Object != "":
		return e.Kind + " " + e.Object
	case e.Head:
		return "check " + e.Kind
	}
	return e.Kind
}

// badge returns the event's outcome: its kind of failure or the source of the answer.
func (e entry) badge() string {
	if e.ErrorKind != "" {
		return e.ErrorKind
	}
	return e.Source
}

// name returns the image or blob that the event is about, with a shortened digest.
func (e entry) name() string {
	switch {
	case e.Ref == "":
		return e.Repo
	case strings.Contains(e.Ref, ":"):
		return e.Repo + "@" + shortText(e.Ref)
	}
	return e.Repo + ":" + e.Ref
}

// lines returns the other facts about the event, one a line.
func (e entry) lines() []string {
	var lines []string
	if e.Digest != "" && e.Digest != e.Ref {
		lines = append(lines, shortText(e.Digest))
	}
	if e.Account+e.Region != "" {
		lines = append(lines, registryText(e.Account, e.Region))
	}
	if e.Error != "" {
		lines = append(lines, e.Error)
	}
	if e.Anonymous {
		lines = append(lines, "The credentials were refused; it went without.")
	}
	if e.WrongDigest {
		lines = append(lines, "Upstream named another digest.")
	}
	for _, warning := range e.Warnings {
		lines = append(lines, "Warning: "+warning)
	}
	return lines
}

func registryText(account, region string) string {
	if account+region == "" {
		return "This registry"
	}
	return strings.TrimSpace("Registry " + account + " " + region)
}

// shortText returns the digest with the first 12 characters of its hex.
func shortText[S ~string](digest S) string {
	algorithm, hex, ok := strings.Cut(string(digest), ":")
	if r := []rune(hex); ok && len(r) > 12 {
		return algorithm + ":" + string(r[:12])
	}
	return string(digest)
}

// countText formats n with commas between the thousands.
func countText[N int | int64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func pluralText[N int | int64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return countText(n) + " " + many
}

// bytesText formats a number of bytes. It rounds down, so that a download is not shown
// as complete before it is.
func bytesText(n int64) string {
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	unit, shift := 0, 10
	for n>>shift >= 1<<10 && unit < 4 {
		unit, shift = unit+1, shift+10
	}
	rest := (n - n>>shift<<shift) * 10 >> shift
	return fmt.Sprintf("%d.%d %ciB", n>>shift, rest, "KMGTP"[unit])
}

func durationText(micros int64) string {
	ms := micros / 1000
	switch {
	case ms < 1:
		return "< 1 ms"
	case ms < 1000:
		return fmt.Sprintf("%d ms", ms)
	case ms < 60_000:
		return fmt.Sprintf("%d.%d s", ms/1000, ms%1000/100)
	}
	return fmt.Sprintf("%d min %02d s", ms/60_000, ms%60_000/1000)
}

// ratioText is shareText, but nothing of nothing is no share.
func ratioText(part, whole int64) string {
	if whole == 0 {
		return "–"
	}
	return shareText(part, whole)
}

// shareText returns a percentage, rounded down. If whole is 0 it is 100 %.
func shareText(part, whole int64) string {
	if whole <= 0 {
		return "100 %"
	}
	return strconv.FormatInt(part*100/whole, 10) + " %"
}

func clockText(t time.Time) string { return t.UTC().Format(time.TimeOnly) }
func stampText(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }
