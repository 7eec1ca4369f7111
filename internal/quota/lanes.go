package quota

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// maxLanes is how many lanes are remembered, those that nobody is in included.
const maxLanes = 1024

// Lanes bounds how many callers there are at a time: with one key, so that none waits
// for another key's, and in all. It is safe for concurrent use.
type Lanes[K comparable] struct {
	each  int64
	all   *Quota
	byKey *lru.Cache[K, *Quota]
}

// NewLanes allows each callers with one key, and all together.
func NewLanes[K comparable](each, all int64) *Lanes[K] {
	return &Lanes[K]{each, New(all), lru.New[K, *Quota](maxLanes)}
}

// Take waits until there may be one more caller with that key. The caller calls give
// when it is done. The error is the context's cause.
func (l *Lanes[K]) Take(ctx context.Context, key K) (give func(), err error) {
	lane := l.byKey.GetOrPut(key, func() *Quota { return New(l.each) })
	if err := lane.Take(ctx, 1); err != nil {
		return nil, err
	}
	if err := l.all.Take(ctx, 1); err != nil {
		lane.Give(1)
		return nil, err
	}
	return func() { l.all.Give(1); lane.Give(1) }, nil
}
