package history_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var (
	length    = flag.Duration("history", 0, "how long histories go on; 0: 5s, or 30s with PULLTHROUGH_LONG")
	seedFlag  = flag.Uint64("history.seed", 0, "the seed of the histories; 0: 1, or another one each time where -history is given")
	worldFlag = flag.Int("history.world", -1, "the one world to run; -1: all, one after the other")
)

// TestHistory runs histories, one world after the other, until the time is over or
// something is violated. The package comment has the commands.
func TestHistory(t *testing.T) {
	long, seed := *length, *seedFlag
	switch {
	case seed != 0:
	case long == 0: // the same histories each time, where nobody asks for more
		seed = 1
	default:
		seed = rand.Uint64N(1 << 40)
	}
	switch {
	case long == 0 && testkit.Long():
		long = 30 * time.Second
	case long == 0:
		long = 5 * time.Second
	}
	theLibrary()
	start := time.Now()
	worlds := 0
	for i := max(0, *worldFlag); time.Since(start) < long; i++ {
		p := newPlan(seed, i)
		if !t.Run(fmt.Sprintf("seed %d/world %d", seed, i), func(t *testing.T) { run(t, p) }) {
			break
		}
		worlds++
		if *worldFlag >= 0 {
			break
		}
	}
	t.Logf("seed %d: %d worlds of %d without a violation", seed, worlds, len(settings()))
}

// run lets one history happen.
func run(t *testing.T, p plan) {
	testkit.Baseline(t)
	w := newWorld(t, p)
	for _, a := range p.acts {
		w.perform(a)
		if t.Failed() {
			break
		}
	}
	w.end()
}

// perform plays an act, brings the world to rest, and asks it then.
func (w *world) perform(a act) {
	w.begin(a.weather)
	if a.weather == calm {
		w.lookAtStore()
	}
	var actors sync.WaitGroup
	actors.Go(func() { w.operate(a.steps) })
	for _, wishes := range a.clients {
		actors.Go(func() { w.play(wishes) })
	}
	actors.Wait()
	w.calmDown()
	w.idle()
	w.checkScene()

	w.begin(calm)
	w.rest(a.rest)
	w.idle()
	w.checkScene()
}

// begin begins a scene. Whatever was remembered of failures is over.
func (w *world) begin(weather weather) {
	w.Jump(6 * time.Minute)
	for _, up := range w.ups {
		up.Reset()
	}
	w.scene.next(weather)
	w.note(everything, "--- %v", weather)
}
