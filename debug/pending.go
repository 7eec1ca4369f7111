package debug

import (
	"errors"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// maxPending is how much is shown of what waits.
const maxPending = 100

// pending is something that waits for an upstream registry, or goes on although nobody
// waits for it.
type pending struct {
	Account  string `json:"account,omitempty"`
	Region   string `json:"region,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Repo     string `json:"repo,omitempty"` // "": all of the rule's
	Ref      string `json:"ref,omitempty"`
	Object   string `json:"object,omitempty"`
	Checks   bool   `json:"checks,omitempty"`  // of stored tags, which are served unchecked
	Image    bool   `json:"image,omitempty"`   // an import of a whole image
	Lingers  bool   `json:"lingers,omitempty"` // its clients have left
	Upstream string `json:"upstream,omitempty"`
	Status   int    `json:"status,omitempty"`
	Micros   int64  `json:"micros"` // until the next try
}

// pending returns what of all that waits is shown.
func (p *Page) pending(filter string) (shown []pending, more int) {
	shown = []pending{}
	if p.Proxy == nil {
		return shown, 0
	}
	for _, e := range p.Proxy.Pending() {
		switch one := newPending(e); {
		case one.Repo != "" && !strings.Contains(one.Repo, filter):
		case len(shown) == maxPending:
			more++
		default:
			shown = append(shown, one)
		}
	}
	return shown, more
}

func newPending(e pullthrough.Event) pending {
	repo := e.Request.Repo
	n := pending{
		Account: clean(repo.Account, maxName), Region: clean(repo.Region, maxName), Rule: clean(e.Rule, maxName),
		Repo: clean(repo.Name, maxName), Ref: clean(e.Request.Ref, maxRef), Object: clean(e.Object, maxName),
		Checks: e.Source == pullthrough.SourceStale, Image: e.Part, Lingers: e.Err == nil,
	}
	if why, ok := errors.AsType[*pullthrough.Error](e.Err); ok {
		n.Upstream, n.Status, n.Micros = clean(why.Host, maxName), why.Status, max(why.RetryAfter, 0).Microseconds()
	}
	return n
}
