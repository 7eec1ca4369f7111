package testkit

import (
	"context"
	"sync"

	"github.com/ecr-pullthrough/pullthrough"
)

// Of are the events of one kind.
func (e *Events) Of(kind pullthrough.EventKind) (some []pullthrough.Event) {
	e.Mu.Lock()
	defer e.Mu.Unlock()
	for _, event := range e.All {
		if event.Kind == kind {
			some = append(some, event)
		}
	}
	return some
}

// Sources are how the answers to pulls of manifests came about.
func (e *Events) Sources() (all []pullthrough.Source) {
	for _, event := range e.Of(pullthrough.EventManifest) {
		all = append(all, event.Source)
	}
	return all
}

// Events remembers what the proxy told.
type Events struct {
	Mu  sync.Mutex
	All []pullthrough.Event
}

func (e *Events) On(_ context.Context, event pullthrough.Event) {
	e.Mu.Lock()
	defer e.Mu.Unlock()
	e.All = append(e.All, event)
}

// StoreFailures are the errors of the Store that were told.
func (e *Events) StoreFailures() (errs []error) {
	e.Mu.Lock()
	defer e.Mu.Unlock()
	for _, event := range e.All {
		if event.Kind == pullthrough.EventStoreFailed {
			errs = append(errs, event.Err)
		}
	}
	return errs
}
