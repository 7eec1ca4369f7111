package controlplane

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
)

// Store is the emulator's Store, for pullthroughtest.TestStore.
func (e *Emulator) Store() pullthrough.Store { return store{e} }

// Idle waits until what was pulled is in the emulator's maps.
func (e *Emulator) Idle(ctx context.Context) error { return e.proxy.Idle(ctx) }
