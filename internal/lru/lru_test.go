package lru_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

func TestTheEntryUsedLeastRecentlyIsForgotten(t *testing.T) {
	c := lru.New[string, int](2)
	c.Put("a", 1)
	c.Put("b", 2)
	_, _ = c.Get("a")
	c.Put("c", 3)
	_, ok := c.Get("b")
	assert.False(t, ok)
	v, ok := c.Get("a")
	assert.True(t, ok)
	assert.Equal(t, 1, v)
	assert.Equal(t, 2, c.Len())
}

func TestPutReplaces(t *testing.T) {
	c := lru.New[string, int](2)
	c.Put("a", 1)
	c.Put("a", 2)
	v, _ := c.Get("a")
	assert.Equal(t, 2, v)
	assert.Equal(t, 1, c.Len())
}

func TestGetOrPutMakesOnce(t *testing.T) {
	c := lru.New[string, int](2)
	made := 0
	for range 3 {
		assert.Equal(t, 1, c.GetOrPut("a", func() int { made++; return made }))
	}
}

func TestRemoveIfComparesFirst(t *testing.T) {
	c := lru.New[string, int](2)
	c.Put("a", 1)
	c.RemoveIf("a", func(v int) bool { return v == 2 })
	assert.Equal(t, 1, c.Len())
	c.RemoveIf("a", func(v int) bool { return v == 1 })
	c.RemoveIf("missing", func(int) bool { return true })
	assert.Zero(t, c.Len())
}

func TestEachMarksNothingAsUsed(t *testing.T) {
	c := lru.New[string, int](2)
	c.Put("a", 1)
	c.Put("b", 2)
	seen := map[string]int{}
	c.Each(func(key string, v int) { seen[key] = v })
	assert.Equal(t, map[string]int{"a": 1, "b": 2}, seen)
	c.Put("c", 3)
	_, ok := c.Get("a")
	assert.False(t, ok, "it is still the oldest")
}
