package recent_test

import (
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/recent"
)

func TestWhatCameLastStays(t *testing.T) {
	table := recent.New[string]()
	assert.Nil(t, table.At("a").Load())
	for _, v := range []string{"first", "second"} {
		table.At("a").Store(&v)
		assert.Equal(t, v, *table.At("a").Load())
	}
}

func TestATableDoesNotGrow(t *testing.T) {
	table := recent.New[string]()
	held := map[*string]bool{}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				key := strconv.Itoa(worker) + "-" + strconv.Itoa(i)
				table.At(key).Store(&key)
			}
		})
	}
	wg.Wait()
	for worker := range 4 {
		for i := range 5000 {
			if v := table.At(strconv.Itoa(worker) + "-" + strconv.Itoa(i)).Load(); v != nil {
				held[v] = true
			}
		}
	}
	assert.LessOrEqual(t, len(held), 1024)
	assert.Greater(t, len(held), 1000, "keys are spread")
}
