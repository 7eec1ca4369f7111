package layout

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	// Format is the file that notes the format of the store. A store without it has
	// the format of version 1.
	Format = "pullthrough/format"
	// FormatVersion is the newest format that this package knows.
	FormatVersion = 1
	// MaxFormat is the size of the largest note, in bytes.
	MaxFormat = 4 << 10
)

// FormatNote is what a store writes as [Format].
const FormatNote = `1
The line above is the version of this store's format, MAJOR or MAJOR.MINOR.
Version 1: distribution's registry format in docker/registry/v2, and beside it and
in pullthrough what that does not keep. A store without this file has version 1.
A program that knows only lower major versions must not use this store. A minor
version adds only what older programs may overlook.
See docs/layout.md of github.com/ecr-pullthrough/pullthrough.
`

// CheckFormat reports whether the note with this content has a format that this
// package knows. It also returns what the note says.
func CheckFormat(content []byte) (said string, ok bool) {
	said, _, _ = strings.Cut(string(content), "\n")
	major, _, _ := strings.Cut(said, ".")
	version, err := strconv.Atoi(major)
	return fmt.Sprintf("%.20s", said), err == nil && 1 <= version && version <= FormatVersion
}

// FormatMessage is the text of the error for a note that says something else.
func FormatMessage(said string) string {
	return fmt.Sprintf("the format in %s is %q, and this version of the package knows %d: a newer version has written it, or the file is damaged", Format, said, FormatVersion)
}
