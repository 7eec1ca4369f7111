package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// -max-bytes holds memory and directories.
func TestMaxBytes(t *testing.T) {
	for name, flags := range map[string][]string{"memory": nil, "directory": {"-data", t.TempDir()}} {
		t.Run(name, func(t *testing.T) {
			up := pullthroughtest.New(t, pullthroughtest.Config{})
			one, two := newImage(), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Layers: 3, LayerSize: 2 << 20})
			up.Push("one", "v1", one)
			up.Push("two", "v1", two)
			i := start(t, append(flags, "-rule", "p="+up.URL(), "-max-bytes", "8MiB")...)
			i.pull(t, "p/one", "v1", one)
			stored := func() bool { return strings.Count(i.stderr.String(), "1 upstream request") == 1+len(one.Blobs()) }
			require.Eventually(t, stored, 10*time.Second, time.Millisecond, "clients do not wait for the Store, the log does")
			i.pull(t, "p/two", "v1", two)
			if flags != nil { // sweeps of a directory are made behind the pull, and logged
				swept := regexp.MustCompile(`freed=[1-9]`)
				require.Eventually(t, func() bool { return swept.MatchString(i.stderr.String()) }, 10*time.Second, time.Millisecond)
			}
			assert.Empty(t, i.list(t, "ListImages", `{"repositoryName":"p/one"}`, "imageIds", "imageTag"))
			assert.Equal(t, []any{"v1"}, i.list(t, "ListImages", `{"repositoryName":"p/two"}`, "imageIds", "imageTag"))
			up.Reset()
			i.pull(t, "p/two", "v1", two)
			assert.Empty(t, up.Log())
			i.pull(t, "p/one", "v1", one)
			assert.Contains(t, up.Log(), "GET /v2/one/manifests/v1 200")
		})
	}
}

func TestSizesThatParse(t *testing.T) {
	for value, want := range map[string]int64{
		"0":                   0,
		"1000000":             1_000_000,
		"1KiB":                1 << 10,
		"512MiB":              512 << 20,
		"10GiB":               10 << 30,
		"2TiB":                2 << 40,
		"8191PiB":             8191 << 50,
		"9223372036854775807": 1<<63 - 1,
	} {
		c, err := parse([]string{"-max-bytes", value})
		require.NoError(t, err, value)
		assert.Equal(t, want, c.maxBytes, value)
	}
}

func TestTexts(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1023.9 KiB", 3 << 19: "1.5 MiB", 10 << 30: "10.0 GiB", 1<<63 - 1: "8191.9 PiB",
	} {
		assert.Equal(t, want, bytesText(n))
	}
	for d, want := range map[time.Duration]string{
		1500: "2µs", 214*time.Millisecond + 300*time.Microsecond: "214ms", 2254 * time.Millisecond: "2.25s", 61*time.Second + 300*time.Millisecond: "1m1s",
	} {
		assert.Equal(t, want, tookText(d))
	}
	assert.Equal(t, int64(500), rateOf(1000, 2*time.Second))
	assert.Zero(t, rateOf(1000, 0))
}
