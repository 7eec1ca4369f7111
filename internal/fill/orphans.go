package fill

import "sync"

// orphans counts the fills that go on without a reader. The zero value counts
// none. It is safe for concurrent use.
type orphans struct {
	mu    sync.Mutex
	n     int
	bytes int64
}

// admit counts in a fill with so many bytes to come, if with it there are at most n
// orphans, with so many bytes to come in all.
func (o *orphans) admit(remaining int64, n int, bytes int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n >= n || o.bytes+remaining > bytes {
		return false
	}
	o.n++
	o.bytes += remaining
	return true
}

// leave counts out a fill that was admitted with so many bytes.
func (o *orphans) leave(remaining int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n--
	o.bytes -= remaining
}
