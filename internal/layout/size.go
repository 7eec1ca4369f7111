package layout

import (
	"fmt"
	"path"
	"strconv"
)

// MaxBlobSize is more than the digits of any size: so many bytes of a note are read at
// most.
const MaxBlobSize = 20

// BlobSize is the file in dir, the directory of a blob's link, that says how many bytes
// the blob has. It is written when the blob has been verified, so it proves what the
// length of a file does not: that nobody has cut the file since.
func BlobSize(dir string) string { return path.Join(dir, "size") }

// EncodeBlobSize is the content of the file of a size.
func EncodeBlobSize(size int64) []byte { return strconv.AppendInt(nil, size, 10) }

// ParseBlobSize is the inverse of [EncodeBlobSize]. The error Is [ErrDamaged].
func ParseBlobSize(content []byte) (int64, error) {
	size, err := strconv.ParseUint(string(content), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("a size that says %.20q: %w", content, ErrDamaged)
	}
	return int64(size), nil
}
