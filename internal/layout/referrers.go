package layout

import (
	"encoding/json"
	"fmt"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// MaxReferrers is the size of the largest list of referrers, in bytes.
const MaxReferrers = 4 << 20

type referrers struct {
	CheckedAt time.Time      `json:"checkedAt"`
	Index     *ocispec.Index `json:"index"`
}

// EncodeReferrers is the content of the file of a list that upstream confirmed at
// the time checked. The error Is [pullthrough.ErrTooLarge] beyond [MaxReferrers].
func EncodeReferrers(list *ocispec.Index, checked time.Time) ([]byte, error) {
	content, err := json.Marshal(referrers{checked.UTC().Round(0), list})
	if err == nil && len(content) > MaxReferrers {
		err = fmt.Errorf("a list of referrers of %d bytes: %w", len(content), pullthrough.ErrTooLarge)
	}
	return content, err
}

// ParseReferrers is the inverse of [EncodeReferrers]. The error Is [ErrDamaged].
func ParseReferrers(content []byte) (*ocispec.Index, time.Time, error) {
	var r referrers
	if err := json.Unmarshal(content, &r); err != nil || r.Index == nil {
		return nil, time.Time{}, fmt.Errorf("a list of referrers: %w", ErrDamaged)
	}
	return r.Index, r.CheckedAt, nil
}
