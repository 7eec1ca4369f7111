package pullthrough

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
)

// Connect has connections to the upstream of repo made by dial, and its
// certificate checked against roots. All else about them stays as it is without a
// Transport from the host.
func (p *Proxy) Connect(repo Repo, dial func(context.Context, string, string) (net.Conn, error), roots *x509.CertPool) error {
	rt, err := p.route(context.Background(), repo)
	if err != nil {
		return err
	}
	own := p.state().upstream.lanes.transport(lane{rt.reach(rt.base), rt.policy.HTTP1})
	own.DialContext = dial
	if own.TLSClientConfig == nil {
		own.TLSClientConfig = new(tls.Config)
	}
	own.TLSClientConfig.RootCAs = roots
	return nil
}
