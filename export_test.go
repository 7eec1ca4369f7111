package pullthrough

import "time"

// WaitIdle returns when no fetch runs any more.
func (p *Proxy) WaitIdle() {
	for p.state().manifests.Len()+p.state().blobs.Len() > 0 {
		time.Sleep(time.Millisecond)
	}
}
