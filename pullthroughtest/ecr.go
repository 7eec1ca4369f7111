package pullthroughtest

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// ECR is an Amazon ECR in this process, with the registry that it pulls from. Make one with
// [NewECR]. It is safe for concurrent use.
//
//	ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{})
//	ecr.Upstream.Push("library/alpine", "3.22", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}))
//	... pull ecr.Host + "/docker-hub/library/alpine:3.22" ...
//	ecr.Idle()
//	assert.Equal(t, 1, ecr.Upstream.Count("GET /v2/library/alpine/manifests/3.22 200"))
type ECR struct {
	// Server has the parts: Proxy, API, Catalog and Page.
	*fakeecr.Server
	// Upstream is the registry behind the rules.
	Upstream *Upstream
	// URL is the endpoint for AWS SDKs and tools, like http://127.0.0.1:4711, without a
	// slash at its end. They may sign with any access key.
	URL string
	// Host is what image references begin with, like 127.0.0.1:4711. Docker and the Go
	// libraries take it for http.
	Host string

	tb testing.TB
}

// NewECR starts the ECR that c describes, on a loopback port, and ends it with the test.
//
// What a rule pulls comes from up, whichever registry the rule names by its host, such as
// registry-1.docker.io. This also holds for rules that the test makes by the API. A rule may name
// another registry of the test by its URL, and so may c.Endpoints. So no pull leaves this
// machine. If up is nil, it is a registry of the zero [Config].
//
// If c has no Rules, there is one: docker-hub, for registry-1.docker.io. NewECR ends the test if c
// cannot be used. What is being downloaded when the test ends is given up. Without a Logger in c
// the log is the test's output.
func NewECR(tb testing.TB, up *Upstream, c fakeecr.Config) *ECR {
	tb.Helper()
	if up == nil {
		up = New(tb, Config{})
	}
	at, err := url.Parse(up.URL)
	if err != nil {
		tb.Fatalf("pullthroughtest: %v", err)
	}
	endpoints := map[string]*url.URL{fakeecr.AnyHost: at}
	maps.Copy(endpoints, c.Endpoints)
	c.Endpoints = endpoints
	if len(c.Rules) == 0 {
		c.Rules = []pullthrough.Rule{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}}
	}
	if c.Transport == nil {
		c.Transport = up.Client().Transport
	}
	lines := &output{to: tb.Output()}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(lines, nil))
	}
	server, err := fakeecr.New(c)
	if err != nil {
		tb.Fatalf("pullthroughtest: %v", err)
	}
	listener := httptest.NewServer(server)
	tb.Cleanup(func() { endECR(listener, server); lines.end() })
	return &ECR{Server: server, Upstream: up, URL: listener.URL, Host: listener.Listener.Addr().String(), tb: tb}
}

// endECR gives up what runs: the test that wanted it is over.
func endECR(listener *httptest.Server, server *fakeecr.Server) {
	listener.CloseClientConnections()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = server.Shutdown(ended) // it returns ended's error
	listener.Close()
}

// output is the output of a test, up to its end. What is given up may have something to say
// after that.
type output struct {
	mu sync.Mutex
	to io.Writer // nil: the test has ended
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.to == nil {
		return len(p), nil
	}
	return o.to.Write(p)
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.to = nil
}

// Idle waits until all that was pulled is stored. A pull is answered before that: a test that
// wants the next one to be a hit calls Idle in between. It fails the test if the test ends first.
func (e *ECR) Idle() {
	e.tb.Helper()
	if err := e.Server.Idle(e.tb.Context()); err != nil {
		e.tb.Errorf("pullthroughtest: %v", err)
	}
}
