package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
		c, err := parse([]string{"-max-bytes", value}, nil)
		require.NoError(t, err, value)
		assert.Equal(t, want, c.MaxBytes, value)
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
