package pullthrough

import (
	"context"
	"time"
)

// Running returns how many fetches run.
func (p *Proxy) Running() int {
	return p.state().imports.Len() + p.state().manifests.Len() + p.state().blobs.Len()
}

// WaitIdle returns when no fetch runs any more.
func (p *Proxy) WaitIdle() {
	for p.Running() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// Waiting returns how many callers wait for a manifest.
func (p *Proxy) Waiting(repo Repo, ref string) int {
	rt, err := p.route(context.Background(), repo)
	if err != nil {
		return 0
	}
	return p.state().manifests.Waiting(rt.key(ref))
}

var ParseContentRange = parseContentRange
