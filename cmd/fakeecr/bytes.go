package main

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// byteUnits are the letters before "iB", each 1024 times the one before it.
const byteUnits = "KMGTP"

// parseBytes reads 10GiB, 512MiB or a plain number of bytes; ok is false for all else.
func parseBytes(value string) (n int64, ok bool) {
	digits, shift := value, 0
	if number, isUnit := strings.CutSuffix(value, "iB"); isUnit && number != "" {
		last := len(number) - 1
		digits, shift = number[:last], 10*(strings.IndexByte(byteUnits, number[last])+1)
		if shift == 0 {
			return 0, false
		}
	}
	u, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || u > math.MaxInt64>>shift {
		return 0, false
	}
	return int64(u) << shift, true
}

// bytesText returns n for people, in ten characters at most. It rounds down, so that it
// never shows more than there is.
func bytesText(n int64) string {
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	unit, shift := 0, 10
	for n>>shift >= 1<<10 && unit < len(byteUnits)-1 {
		unit, shift = unit+1, shift+10
	}
	tenths := (n - n>>shift<<shift) * 10 >> shift
	return strconv.FormatInt(n>>shift, 10) + "." + strconv.FormatInt(tenths, 10) + " " + byteUnits[unit:unit+1] + "iB"
}

// rateOf returns bytes per second. It is 0 if the rate is not known.
func rateOf(n int64, took time.Duration) int64 {
	if n <= 0 || took <= 0 {
		return 0
	}
	return int64(float64(n) / took.Seconds())
}

func rateText(rate int64) string { return bytesText(rate) + "/s" }

// tookText returns d for people, rounded to about three digits.
func tookText(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
