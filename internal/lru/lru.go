// Package lru is a bounded map that removes the least recently used entry. Use it for
// every map whose keys a client or an upstream registry chooses.
package lru

import (
	"container/list"
	"sync"
)

// Cache keeps at most a fixed number of entries. It is safe for concurrent use.
type Cache[K comparable, V any] struct {
	max int

	mu      sync.Mutex
	order   list.List // of entry[K, V]; the most recently used in front
	entries map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// New returns an empty cache for at most max entries.
func New[K comparable, V any](max int) *Cache[K, V] {
	return &Cache[K, V]{max: max, entries: make(map[K]*list.Element)}
}

// Get returns the value of key and marks it as used.
func (c *Cache[K, V]) Get(key K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(entry[K, V]).value, true
}

// Put sets the value of key and marks it as used. It removes the least recently used
// entry if there are too many.
func (c *Cache[K, V]) Put(key K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(key, v)
}

func (c *Cache[K, V]) putLocked(key K, v V) {
	if e, ok := c.entries[key]; ok {
		e.Value = entry[K, V]{key, v}
		c.order.MoveToFront(e)
		return
	}
	c.entries[key] = c.order.PushFront(entry[K, V]{key, v})
	if c.order.Len() > c.max {
		oldest := c.order.Remove(c.order.Back()).(entry[K, V])
		delete(c.entries, oldest.key)
	}
}

// GetOrPut returns the value of key and marks it as used. If there is none, it first sets
// the value to what make returns. It calls make while it holds the cache's lock.
func (c *Cache[K, V]) GetOrPut(key K, make func() V) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.order.MoveToFront(e)
		return e.Value.(entry[K, V]).value
	}
	v := make()
	c.putLocked(key, v)
	return v
}

// RemoveIf removes key if match accepts its value. It calls match while it holds the
// cache's lock.
func (c *Cache[K, V]) RemoveIf(key K, match func(V) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok && match(e.Value.(entry[K, V]).value) {
		c.order.Remove(e)
		delete(c.entries, key)
	}
}

// RemoveAll removes the entries whose keys match accepts. It calls match while it holds
// the cache's lock.
func (c *Cache[K, V]) RemoveAll(match func(K) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.entries {
		if match(key) {
			c.order.Remove(e)
			delete(c.entries, key)
		}
	}
}

// Each calls visit for each entry, in no order, and marks none as used. It calls visit
// while it holds the cache's lock.
func (c *Cache[K, V]) Each(visit func(K, V)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.entries {
		visit(key, e.Value.(entry[K, V]).value)
	}
}

// Clear removes all entries.
func (c *Cache[K, V]) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.order.Init()
	clear(c.entries)
}

// Len returns the number of entries.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}
