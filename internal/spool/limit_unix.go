//go:build unix

package spool

import (
	"errors"
	"syscall"
)

// OpenFileLimit is how many files the process may have open.
func OpenFileLimit() int64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 256
	}
	return int64(min(limit.Cur, 1<<20))
}

// maxGaps bounds how many descriptors OpenFiles takes.
const maxGaps = 32

// OpenFiles is about how many descriptors the process has open, and how many it may
// have. A new descriptor gets the lowest number that is free, so the numbers of a few
// tell. They are a sixteenth of the limit, to look beyond the gaps that a few others
// have left by closing theirs just now.
func OpenFiles() (open, limit int64) {
	limit = OpenFileLimit()
	var taken [maxGaps]int
	n := 0
	defer func() {
		for _, fd := range taken[:n] {
			_ = syscall.Close(fd)
		}
	}()
	for gaps := int(min(limit/16, maxGaps)); n < gaps; n++ {
		fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if IsOutOfFiles(err) {
			return limit - int64(n), limit
		}
		if err != nil {
			return 0, limit
		}
		taken[n] = fd
		open = max(open, int64(fd-n))
	}
	return open, limit
}

// IsOutOfFiles reports whether something failed since too many files are open.
func IsOutOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
