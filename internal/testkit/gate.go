package testkit

import (
	"sync"
	"testing"
)

// Gate is a stall that is over for good once it is opened.
type Gate struct {
	C    chan struct{}
	once sync.Once
}

func NewGate(t *testing.T) *Gate {
	g := &Gate{C: make(chan struct{})}
	t.Cleanup(g.Open)
	return g
}

func (g *Gate) Open() { g.once.Do(func() { close(g.C) }) }
