package ecrapi

import (
	"encoding/json"
	"math"
	"strconv"
	"time"
)

// Time is a timestamp of the JSON API: a number, seconds since 1970, with
// milliseconds if there are any. The zero Time stands for an absent timestamp.
type Time struct{ time.Time }

// MarshalJSON writes the number.
func (t Time) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(t.UnixMilli())/1000, 'f', -1, 64), nil
}

// UnmarshalJSON reads the number; null is the zero Time.
func (t *Time) UnmarshalJSON(b []byte) error {
	var seconds *float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	if seconds == nil {
		*t = Time{}
		return nil
	}
	*t = Time{time.UnixMilli(int64(math.Round(*seconds * 1000))).UTC()}
	return nil
}
