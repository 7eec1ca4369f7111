package fill

import (
	"context"
	"errors"
	"sync"
)

// errWanted ends the time in which no client wanted a fill.
var errWanted = errors.New("a client wants the blob")

// demand knows which blobs clients wait for, so that a fill that an import has begun
// goes on as one of theirs when a client joins it. The zero value is ready for use. It
// is safe for concurrent use.
type demand[K comparable] struct {
	mu      sync.Mutex
	clients map[K]int                      // how many wait
	parts   map[K]*context.CancelCauseFunc // fills that imports have begun, and how to tell them
}

// join notes that a client waits for key, until it calls leave.
func (d *demand[K]) join(key K) (leave func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clients == nil {
		d.clients = make(map[K]int)
	}
	d.clients[key]++
	if tell, ok := d.parts[key]; ok {
		(*tell)(errWanted)
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.clients[key]--
		if d.clients[key] == 0 {
			delete(d.clients, key)
		}
	}
}

// part returns a context that ends, because of errWanted, when a client waits for key,
// and with ctx. The fill calls done at its end.
func (d *demand[K]) part(ctx context.Context, key K) (unwanted context.Context, done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	unwanted, tell := context.WithCancelCause(ctx)
	if d.clients[key] > 0 {
		tell(errWanted)
	}
	if d.parts == nil {
		d.parts = make(map[K]*context.CancelCauseFunc)
	}
	d.parts[key] = &tell
	return unwanted, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		tell(nil)
		if d.parts[key] == &tell { // and not a later fill's
			delete(d.parts, key)
		}
	}
}
