// Package recent remembers what was worked out last, without a lock. It is for values that
// depend on a short key alone, are asked for again and again, and cost more to make than to
// find.
package recent

import (
	"hash/maphash"
	"sync/atomic"
)

// slots is how many values a [Table] keeps at most.
const slots = 1024

// Table keeps values that know their keys. Keys share slots: the value that came last stays,
// and who finds one compares its key. It is safe for concurrent use.
type Table[V any] struct {
	seed  maphash.Seed // clients cannot tell which keys share a slot
	slots [slots]atomic.Pointer[V]
}

// New returns an empty Table.
func New[V any]() *Table[V] { return &Table[V]{seed: maphash.MakeSeed()} }

// At returns the slot of key, which may hold nil, or the value of another key. What is
// stored in it must not change any more.
func (t *Table[V]) At(key string) *atomic.Pointer[V] {
	return &t.slots[maphash.String(t.seed, key)%slots]
}
