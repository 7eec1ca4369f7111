package testkit

import (
	"sync"
	"testing"
)

// Gate is a stall that is over for good once it is opened.
type Gate struct {
	C    chan struct{} // closed when it is opened
	once sync.Once
}

// NewGate returns a closed gate, which opens at the end of the test at the latest.
func NewGate(t *testing.T) *Gate {
	g := &Gate{C: make(chan struct{})}
	t.Cleanup(g.Open)
	return g
}

// Open opens the gate. It may be called twice.
func (g *Gate) Open() { g.once.Do(func() { close(g.C) }) }
