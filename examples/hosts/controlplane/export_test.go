package controlplane

import "github.com/ecr-pullthrough/pullthrough"

// Store is the emulator's Store, for pullthroughtest.TestStore.
func (e *Emulator) Store() pullthrough.Store { return store{e} }
