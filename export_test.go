package pullthrough

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// Running returns how many fetches run.
func (p *Proxy) Running() int { return p.engine().flights.Len() }

// Waiting returns how many callers wait for a manifest.
func (p *Proxy) Waiting(repo Repo, ref string) int {
	e := p.engine()
	rt, err := e.router.route(context.Background(), repo)
	if err != nil {
		return 0
	}
	return e.manifests.flights.Waiting(rt.key(ref))
}

// LeaveForImports leaves so many bytes to the manifests that imports of the rule of repo
// work on.
func (p *Proxy) LeaveForImports(repo Repo, bytes int64) {
	e := p.engine()
	if rt, err := e.router.route(context.Background(), repo); err == nil {
		e.importer.lane(rt).bytes.TryTake(importBytesPerRule - bytes)
	}
}

// TakeImports takes so many of the places for imports that go before their manifest.
func (p *Proxy) TakeImports(n int64) (give func()) {
	q := p.engine().importer.firsts
	q.TryTake(n)
	return func() { q.Give(n) }
}

// Connect has connections to the upstream of repo made by dial, and its
// certificate checked against roots. All else about them stays as it is without a
// Transport from the host.
func (p *Proxy) Connect(repo Repo, dial func(context.Context, string, string) (net.Conn, error), roots *x509.CertPool) error {
	e := p.engine()
	rt, err := e.router.route(context.Background(), repo)
	if err != nil {
		return err
	}
	t, err := e.registries.target(rt, "")
	if err != nil {
		return err
	}
	for _, one := range []bool{t.Options.HTTP1, true} { // the second: for parts of blobs
		t.Options.HTTP1 = one
		own := e.registries.client.HTTPTransport(t)
		own.DialContext = dial
		if own.TLSClientConfig == nil {
			own.TLSClientConfig = new(tls.Config)
		}
		own.TLSClientConfig.RootCAs = roots
	}
	return nil
}

// TakeTurn takes one of the turns that the rule of repo has for manifests.
func (p *Proxy) TakeTurn(repo Repo) (give func(), err error) {
	e := p.engine()
	rt, err := e.router.route(context.Background(), repo)
	if err != nil {
		return nil, err
	}
	_, give, err = e.registries.reach(context.Background(), rt, "", upstream.Pull)
	return give, err
}

// Mirrored returns the repository that has by a rule what the host has under name.
func Mirrored(rules []Rule, name, host string) (repository string, ok bool) {
	return mirrored(rules, name, host)
}
