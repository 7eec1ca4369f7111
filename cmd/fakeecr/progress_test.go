package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

const mib = 1 << 20

// noon is when the tests' downloads begin.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func alpine(written, size int64, readers ...int64) pullthrough.Download {
	return pullthrough.Download{
		Repo: pullthrough.Repo{Name: "docker-hub/library/alpine"}, Digest: digest.Digest("sha256:" + strings.Repeat("4abcf206", 8)),
		Began: noon, Size: size, Written: written, Readers: readers,
	}
}

// others are n downloads like d, of other blobs.
func others(d pullthrough.Download, n int) (all []pullthrough.Download) {
	for i := range n {
		d.Digest = digest.FromString(fmt.Sprint(i))
		all = append(all, d)
	}
	return all
}

func TestDraw(t *testing.T) {
	two := []pullthrough.Download{alpine(45*mib, 100*mib, 1, 2), alpine(3*mib, -1, 1)}
	two[1].Repo.Name = "quay/app"
	for width, want := range map[int][]string{
		160: {
			"docker-hub/library/alpine@4abcf2064abc  [==================>                     ]   45%    15.0 MiB/s     45.0 MiB/100.0 MiB         4s left     2 clients",
			"quay/app@4abcf2064abc                   [                                        ]     ?     1.0 MiB/s                3.0 MiB",
		},
		100: {
			"docker-hub/library/alpine@4abcf2064abc  [======>       ]   45%    15.0 MiB/s     45.0 MiB/100.0 MiB",
			"quay/app@4abcf2064abc                   [              ]     ?     1.0 MiB/s                3.0 MiB",
		},
		80: {
			"docker-hub/library/alpine@4abcf2064abc  [=======>         ]   45%    15.0 MiB/s",
			"quay/app@4abcf2064abc                   [                 ]     ?     1.0 MiB/s",
		},
		48: {
			"..brary/alpine@4abcf2064abc   45%    15.0 MiB/s",
			"quay/app@4abcf2064abc           ?     1.0 MiB/s",
		},
		20: {
			"..abcf2064abc   45%",
			"..abcf2064abc     ?",
		},
	} {
		lines, _ := draw(two, nil, width, 24, noon.Add(3*time.Second))
		assert.Equal(t, want, lines, width)
	}
}

// Whatever the terminal: a line that wraps, or scrolls out of sight, could not be
// taken back.
func TestDrawStaysInsideTheTerminal(t *testing.T) {
	all := append(others(alpine(45*mib, 100*mib, 1, 2), 30), alpine(1, -1), alpine(0, 1<<62))
	all[3].Repo.Name = strings.Repeat("very/long/", 25) + "name\x1b[2J\u202e"
	all[4].Digest = "odd"
	for width := range 150 {
		for height := range 15 {
			lines, _ := draw(all, nil, width, height, noon.Add(time.Minute))
			require.LessOrEqual(t, len(lines), max(height-1, 0))
			for _, line := range lines {
				require.Less(t, len(line), max(width, 1), line)
				require.Equal(t, printable(line), line)
			}
		}
	}
	lines, _ := draw(all, nil, 120, 100, noon.Add(time.Minute))
	require.Len(t, lines, maxBars+1)
	assert.Equal(t, "and 22 more", lines[maxBars])
}

func TestWhatHasComeIsNotDrawn(t *testing.T) {
	lines, after := draw([]pullthrough.Download{alpine(5, 5, 1), alpine(0, 0)}, nil, 80, 24, noon.Add(time.Second))
	assert.Empty(t, lines)
	assert.Empty(t, after)
}

// A rate follows what comes, not what has come.
func TestRatesFollowTheDownload(t *testing.T) {
	var known readings
	now, written := noon, int64(0)
	rate := func(seconds int, perSecond int64) float64 {
		for range seconds * 5 {
			now, written = now.Add(200*time.Millisecond), written+perSecond/5
			_, known = draw([]pullthrough.Download{alpine(written, 1<<40)}, known, 80, 24, now)
		}
		require.Len(t, known, 1)
		for _, r := range known {
			return r.rate
		}
		return 0
	}
	assert.InEpsilon(t, 10*mib, rate(1, 10*mib), 0.01, "from the first second on")
	assert.InEpsilon(t, 10*mib, rate(60, 10*mib), 0.01)
	assert.InEpsilon(t, 100*mib, rate(10, 100*mib), 0.02)
	assert.Less(t, rate(20, 0), float64(mib)/100, "a stall shows")

	before := known
	_, known = draw([]pullthrough.Download{alpine(written, 1<<40)}, known, 80, 24, now)
	assert.Equal(t, before, known, "no time has passed")
	again := alpine(0, 1<<40)
	again.Began = now
	_, known = draw([]pullthrough.Download{again}, known, 80, 24, now)
	require.Len(t, known, 1, "what has ended is forgotten")
	assert.Zero(t, known[keyOf(again)].rate, "a new download of the same blob is another")
}

func TestDrawChangesNothingOfItsInput(t *testing.T) {
	all := []pullthrough.Download{alpine(5, 5), alpine(1, 5, 1, 2)}
	want := slices.Clone(all)
	draw(all, readings{}, 80, 24, noon)
	assert.Equal(t, want, all)
}
