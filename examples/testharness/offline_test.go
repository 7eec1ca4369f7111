package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// startOffline serves what was recorded in dir, for the length of a test, and
// returns the URL of that registry. It never touches the network. What is asked for
// and is not recorded fails the test with its name, and the client gets an error
// that says the same.
func startOffline(t testing.TB, dir string) (url string) {
	t.Helper()
	store, err := dirstore.Open(dir)
	if err != nil {
		t.Fatalf("the recorded images cannot be opened: %v", err)
	}
	proxy := &pullthrough.Proxy{
		Store: store,
		// One rule covers every name, so that every miss is "offline: NAME is not stored".
		Rules: pullthrough.StaticRules{{Prefix: "ROOT", UpstreamURL: "offline.invalid"}},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Offline: true}
		},
		OnEvent: func(_ context.Context, e pullthrough.Event) {
			if e.Kind != pullthrough.EventFetch && errors.Is(e.Err, pullthrough.ErrUnavailable) {
				t.Errorf("%v; record the image with go run github.com/ecr-pullthrough/pullthrough/examples/testharness@latest -fill %s", e.Err, dir)
			}
		},
		Transport: noNetwork{t},
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(func() {
		server.Close() // the server first, the proxy second, the Store last
		if err := errors.Join(proxy.Shutdown(context.Background()), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return server.URL
}

// noNetwork is the second lock on the door.
type noNetwork struct{ testing.TB }

func (t noNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	t.Errorf("%s %s: this test is offline", r.Method, r.URL.Redacted())
	return nil, errors.New("offline")
}
