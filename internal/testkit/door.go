package testkit

import (
	"context"
	"sync"

	"github.com/ecr-pullthrough/pullthrough"
)

// Door is an Authorize that remembers what it was asked and refuses what it
// was told to.
type Door struct {
	mu     sync.Mutex
	asked  []pullthrough.Request
	action []pullthrough.Action
	Refuse map[pullthrough.Action]error // what is refused at first
}

// Authorize is a Proxy.Authorize.
func (d *Door) Authorize(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked, d.action = append(d.asked, r), append(d.action, a)
	return d.Refuse[a]
}

// Set changes what is refused from now on, and forgets what was asked.
func (d *Door) Set(refuse map[pullthrough.Action]error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked, d.action, d.Refuse = nil, nil, refuse
}

// Requests are what it was asked since the last Set, with the actions.
func (d *Door) Requests() ([]pullthrough.Request, []pullthrough.Action) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked, d.action
}
