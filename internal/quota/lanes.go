package quota

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// maxLanes is how many lanes are remembered, those that nobody is in included.
const maxLanes = 1024

// Lanes bounds how many callers there are at a time: with one key, and in all. Nobody
// waits for other keys' callers alone: where those have all that there is, each key still
// has a few turns of its own. It is safe for concurrent use.
type Lanes[K comparable] struct {
	each  int64
	all   *Quota
	byKey *lru.Cache[K, lane]
}

// lane is what the callers with one key have.
type lane struct {
	turns *Quota
	own   *Quota // beside what all keys share
}

// NewLanes allows each callers with one key, and all together. A sixteenth of each, or
// one, is a key's own, and does not count towards all.
func NewLanes[K comparable](each, all int64) *Lanes[K] {
	return &Lanes[K]{each, New(all), lru.New[K, lane](maxLanes)}
}

// Take waits until there may be one more caller with that key. The caller calls give
// when it is done. The error is the context's cause.
func (l *Lanes[K]) Take(ctx context.Context, key K) (give func(), err error) {
	in := l.byKey.GetOrPut(key, func() lane { return lane{New(l.each), New(max(1, l.each/16))} })
	if err := in.turns.Take(ctx, 1); err != nil {
		return nil, err
	}
	from := l.all
	if !from.TryTake(1) {
		from = in.own
		if err := from.Take(ctx, 1); err != nil {
			in.turns.Give(1)
			return nil, err
		}
	}
	return func() { from.Give(1); in.turns.Give(1) }, nil
}
