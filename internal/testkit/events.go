package testkit

import (
	"context"
	"slices"
	"sync"

	"github.com/ecr-pullthrough/pullthrough"
)

// Events remembers what the proxy told. Its method On is an OnEvent. The zero value
// has heard nothing.
type Events struct {
	mu  sync.Mutex
	all []pullthrough.Event
}

// On remembers the event.
func (e *Events) On(_ context.Context, event pullthrough.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

// All are the events so far, in the order in which they were told.
func (e *Events) All() []pullthrough.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

// Of are the events of one kind.
func (e *Events) Of(kind string) []pullthrough.Event {
	return slices.DeleteFunc(e.All(), func(event pullthrough.Event) bool { return event.Kind != kind })
}

// Sources are how the answers to pulls of manifests came about.
func (e *Events) Sources() (all []pullthrough.Source) {
	for _, event := range e.Of(pullthrough.EventManifest) {
		all = append(all, event.Source)
	}
	return all
}

// StoreFailures are the errors of the Store that were told.
func (e *Events) StoreFailures() (errs []error) {
	for _, event := range e.Of(pullthrough.EventStoreFailed) {
		errs = append(errs, event.Err)
	}
	return errs
}
