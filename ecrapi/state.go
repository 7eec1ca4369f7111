package ecrapi

import (
	"context"
	"errors"
	"sync"

	"github.com/ecr-pullthrough/pullthrough"
)

// State keeps the settings of private registries. There is one registry for each account
// and Region. A State must be safe for concurrent use.
type State interface {
	// Load returns the settings of a registry. A registry without any has the zero
	// Settings.
	Load(ctx context.Context, account, region string) (Settings, error)
	// Update applies change to the newest settings. If change returns an error, Update
	// keeps nothing of the change and returns that error as it is. No other Update of the
	// registry may come between. change does no I/O, and may be called again.
	Update(ctx context.Context, account, region string, change func(*Settings) error) error
}

// Settings are the settings of one private registry. It is a value: its slices, and what
// they point to, are never changed in place. It can be kept as JSON.
type Settings struct {
	Rules      []pullthrough.Rule
	Templates  []Template
	Exclusions []Exclusion

	RegistryPolicy  string                         `json:",omitempty"` // "": there is none
	AccountSettings []AccountSetting               `json:",omitempty"` // those that were put, each once
	Scanning        *RegistryScanningConfiguration `json:",omitempty"` // nil: none was put
}

// MemState keeps settings in memory, for up to 10,000 registries. The zero value is
// empty and ready for use. It is safe for concurrent use and must not be copied
// after first use.
type MemState struct {
	mu         sync.RWMutex
	registries map[registry]Settings
}

// maxRegistries bounds the memory, since callers may be allowed to name any account.
const maxRegistries = 10_000

var errManyRegistries = errors.New("settings of 10,000 registries are kept already")

// Load returns the settings of a registry. It never fails.
func (m *MemState) Load(_ context.Context, account, region string) (Settings, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.registries[registry{account, region}], nil
}

// Update applies change. It returns the error of change, or one that says that there are
// too many registries.
func (m *MemState) Update(_ context.Context, account, region string, change func(*Settings) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	reg := registry{account, region}
	settings, known := m.registries[reg]
	if err := change(&settings); err != nil {
		return err
	}
	if !known && len(m.registries) >= maxRegistries {
		return errManyRegistries
	}
	if m.registries == nil {
		m.registries = map[registry]Settings{}
	}
	m.registries[reg] = settings
	return nil
}
