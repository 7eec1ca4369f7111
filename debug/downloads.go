package debug

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	// maxDownloads is how many downloads are shown, the oldest first. maxPlaces is how
	// many places of readers are shown for each.
	maxDownloads = 100
	maxPlaces    = 64
	// maxTracks is of how many downloads the progress is remembered, also those that other
	// filters show.
	maxTracks = 1000
	// rateWindow is the period over which a rate is measured. sampleEvery is the least
	// time between two samples.
	rateWindow  = 10 * time.Second
	sampleEvery = 500 * time.Millisecond
)

// download is a download that runs or that clients still read.
type download struct {
	Account  string        `json:"account,omitempty"`
	Region   string        `json:"region,omitempty"`
	Repo     string        `json:"repo"`
	Digest   digest.Digest `json:"digest"`
	Upstream string        `json:"upstream"`
	Part     bool          `json:"part,omitempty"`
	Began    time.Time     `json:"began"`
	Size     int64         `json:"size"` // -1: unknown
	Written  int64         `json:"written"`
	Rate     int64         `json:"rate"` // bytes per second over the last seconds
	Readers  int           `json:"readers"`
	// Connections is how many connections bring content, Ahead how many of the bytes in
	// Written have come before it was their turn.
	Connections int     `json:"connections"`
	Ahead       int64   `json:"ahead,omitempty"`
	Retries     int     `json:"retries,omitempty"` // how often upstream was asked for the rest
	Places      []place `json:"places"`
}

// place is an offset and the number of readers there. If there are too many places,
// neighbours are merged at the offset of the slowest reader.
type place struct {
	At      int64 `json:"at"`
	Readers int   `json:"readers"`
}

// isRunning reports whether the download has bytes left to fetch.
func isRunning(d pullthrough.Download) bool { return d.Size < 0 || d.Written < d.Size }

// showDownloads returns what the page shows of the downloads whose repositories' names
// contain the filter, and how many more there are. It remembers their progress until the
// next view, to measure rates.
func (p *Page) showDownloads(all []pullthrough.Download, filter string, now time.Time) (shown []download, more int) {
	shown = []download{}
	p.mu.Lock()
	defer p.mu.Unlock()
	tracks := make(map[trackKey]*track, min(len(all), maxTracks))
	for _, d := range all {
		key := trackKey{d.Repo, d.Digest, d.Began.UnixNano()}
		t := p.tracks[key]
		switch {
		case !strings.Contains(d.Repo.Name, filter):
		case len(shown) == maxDownloads:
			more++
		default:
			if t == nil {
				t = &track{samples: []sample{{at: d.Began}}}
			}
			shown = append(shown, newDownload(d, t.rate(now, d.Written)))
		}
		if t != nil && len(tracks) < maxTracks { // a view with another filter may need it
			tracks[key] = t
		}
	}
	p.tracks = tracks // without the downloads that have ended
	return shown, more
}

func newDownload(d pullthrough.Download, rate int64) download {
	return download{
		Account: clean(d.Repo.Account, maxName), Region: clean(d.Repo.Region, maxName), Repo: clean(d.Repo.Name, maxName),
		Digest: d.Digest, Upstream: clean(d.Upstream, maxName), Part: d.Part, Began: d.Began.UTC(),
		Size: d.Size, Written: d.Written, Rate: rate, Readers: len(d.Readers), Places: places(d.Readers),
		Connections: d.Connections, Ahead: d.Ahead, Retries: d.Retries,
	}
}

// places groups the readers by offset. The offsets must be sorted.
func places(readers []int64) []place {
	groups := []place{}
	for _, at := range readers {
		if n := len(groups); n > 0 && groups[n-1].At == at {
			groups[n-1].Readers++
			continue
		}
		groups = append(groups, place{At: at, Readers: 1})
	}
	if len(groups) <= maxPlaces {
		return groups
	}
	first, last := groups[0].At, groups[len(groups)-1].At
	merged, bucket := groups[:1], int64(0)
	for _, g := range groups[1:] {
		b := min(int64(float64(g.At-first)/float64(last-first+1)*maxPlaces), maxPlaces-1)
		if b == bucket {
			merged[len(merged)-1].Readers += g.Readers
			continue
		}
		merged, bucket = append(merged, g), b
	}
	return merged
}

// trackKey identifies a download, also among several downloads of the same blob.
type trackKey struct {
	repo   pullthrough.Repo
	digest digest.Digest
	began  int64
}

// track holds samples of a download's progress: the first at its start, one for each
// view after that.
type track struct{ samples []sample }

type sample struct {
	at      time.Time
	written int64
}

// rate returns the bytes per second over the last rateWindow, or since the previous
// view if that is longer ago. It also adds a sample.
func (t *track) rate(now time.Time, written int64) int64 {
	for len(t.samples) > 1 && now.Sub(t.samples[0].at) > rateWindow && now.Sub(t.samples[1].at) >= time.Second {
		t.samples = t.samples[1:]
	}
	base := t.samples[0]
	if now.Sub(t.samples[len(t.samples)-1].at) >= sampleEvery {
		t.samples = append(t.samples, sample{now, written})
	}
	elapsed := now.Sub(base.at)
	if elapsed <= 0 || written <= base.written {
		return 0
	}
	return int64(float64(written-base.written) / elapsed.Seconds())
}
