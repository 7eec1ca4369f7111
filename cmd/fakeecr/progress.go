package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	redrawEvery = 200 * time.Millisecond
	// rateWindow is about how far back a rate looks.
	rateWindow = 2 * time.Second
	// maxBars is how many downloads are shown at once, the oldest.
	maxBars = 10
)

// start shows the running downloads until end is called. end returns when nothing is
// shown any more.
func (c *console) start(downloads func() []pullthrough.Download) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { c.follow(ctx, downloads) })
	return func() {
		cancel()
		done.Wait()
	}
}

// follow shows the running downloads until ctx ends, and then removes them. Without a
// terminal it does nothing.
func (c *console) follow(ctx context.Context, downloads func() []pullthrough.Download) {
	if c.size == nil {
		return
	}
	defer c.show(nil)
	ticker := time.NewTicker(redrawEvery)
	defer ticker.Stop()
	var known readings
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var lines []string
		width, height := c.size()
		lines, known = draw(downloads(), known, width, height, time.Now())
		c.show(lines)
	}
}

// draw returns a line for each download that is not complete. The lines are narrower than
// width, and fewer than height. before is what the last call returned as after.
func draw(all []pullthrough.Download, before readings, width, height int, now time.Time) (lines []string, after readings) {
	all = slices.DeleteFunc(slices.Clone(all), func(d pullthrough.Download) bool { return d.Size >= 0 && d.Written >= d.Size })
	after = before.next(all, now)
	shown := all[:min(len(all), maxBars, max(height-2, 0))]
	bars := make([]bar, len(shown))
	longest := 0
	for i, d := range shown {
		bars[i] = newBar(d, after[keyOf(d)].rate)
		longest = max(longest, len(bars[i].name))
	}
	l := layoutFor(width-1, longest)
	for _, b := range bars {
		lines = append(lines, l.line(b))
	}
	if rest := len(all) - len(shown); rest > 0 && len(lines) > 0 {
		more := fmt.Sprintf("and %d more", rest)
		lines = append(lines, more[:min(len(more), max(width-1, 0))])
	}
	return lines, after
}

// readings are how far downloads had got when they were last looked at.
type readings map[downloadKey]reading

// downloadKey tells a download from another of the same blob.
type downloadKey struct {
	repo   pullthrough.Repo
	digest digest.Digest
	began  int64
}

func keyOf(d pullthrough.Download) downloadKey {
	return downloadKey{d.Repo, d.Digest, d.Began.UnixNano()}
}

type reading struct {
	at      time.Time
	written int64
	rate    float64 // bytes per second
}

// next returns the readings of now. It has the downloads that still run, and no others.
func (r readings) next(all []pullthrough.Download, now time.Time) readings {
	after := make(readings, len(all))
	for _, d := range all {
		last, known := r[keyOf(d)]
		if !known {
			last.at = d.Began
		}
		if passed := now.Sub(last.at); passed > 0 {
			rate := float64(max(d.Written-last.written, 0)) / passed.Seconds()
			// The rate of a young download is its average, that of an old one the rate of
			// its last seconds.
			weight := max(1-math.Exp(-passed.Seconds()/rateWindow.Seconds()), min(passed.Seconds()/now.Sub(d.Began).Seconds(), 1))
			last = reading{now, d.Written, last.rate + (rate-last.rate)*weight}
		}
		after[keyOf(d)] = last
	}
	return after
}

// bar is what is shown about a download, in ASCII.
type bar struct {
	name                                string
	share                               float64 // the part that has come; negative: unknown
	percent, bytes, rate, left, clients string
}

func newBar(d pullthrough.Download, rate float64) bar {
	_, hex, _ := strings.Cut(string(d.Digest), ":")
	b := bar{
		name:  printable(d.Repo.Name) + "@" + printable(hex[:min(len(hex), 12)]),
		share: -1, percent: "?", bytes: bytesText(d.Written), rate: rateText(int64(rate)),
	}
	if n := len(d.Readers); n > 1 {
		b.clients = fmt.Sprintf("%d clients", n)
	}
	if d.Size <= 0 {
		return b
	}
	b.share = float64(d.Written) / float64(d.Size)
	b.percent = fmt.Sprintf("%d%%", int(100*b.share))
	b.bytes += "/" + bytesText(d.Size)
	if left := float64(d.Size-d.Written) / rate; rate > 0 && left < (24*time.Hour).Seconds() {
		b.left = (time.Duration(math.Ceil(left)) * time.Second).String() + " left"
	}
	return b
}

// printable replaces all but printable ASCII, so that each byte takes one column. Names
// that came by /v2/ have nothing else.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
