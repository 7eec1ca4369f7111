package upstream_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestARedirectIsFollowedWithoutTheCredential(t *testing.T) {
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users})
	elsewhere.Push("a", "1", w.push(pullthroughtest.ImageOptions{}))
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Redirect: elsewhere.URL + "{path}"})
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /v2/a/manifests/1 307"}, w.up.Log())
	assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, elsewhere.Log())
	assert.False(t, elsewhere.Saw(canary))
}

// Object stores sign URLs with names of files in them, and not all of them escape.
func testRedirectsWithBlanks(t *testing.T) {
	for location, want := range map[string]string{
		"/a%20file of mine?sig=x":            "/a file of mine?sig=x",
		"/f?name=a file of mine&sig=x+y%20z": "/f?name=a%20file%20of%20mine&sig=x+y%20z",
	} {
		var asked []string
		w := newWorld(t, pullthroughtest.Config{})
		img := w.push(pullthroughtest.ImageOptions{})
		elsewhere := pullthroughtest.New(t, pullthroughtest.Config{Handler: func(rw http.ResponseWriter, r *http.Request) bool {
			asked = append(asked, r.URL.Path+"?"+r.URL.RawQuery)
			_, _ = rw.Write(img.Content)
			return true
		}})
		w.up.Fault(pullthroughtest.Fault{Redirect: elsewhere.URL + location})
		m, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
		if assert.NoError(t, err, location) {
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
		}
		assert.Equal(t, []string{want}, asked)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 307"}, w.up.Log())
	}
}

func TestARedirectThatIsNotFollowedIsARedirectError(t *testing.T) {
	for location, reason := range map[string]string{
		"file:///etc/passwd": "redirected to what is no http URL",
		"{path}":             "more than 5 redirects",
	} {
		w := newWorld(t, pullthroughtest.Config{})
		w.push(pullthroughtest.ImageOptions{})
		w.up.Fault(pullthroughtest.Fault{Redirect: location})
		_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
		e, ok := errors.AsType[*upstream.RedirectError](err)
		require.True(t, ok, "%v", err)
		assert.Equal(t, reason, e.Reason)
		assert.ErrorIs(t, err, upstream.ErrUnavailable)
		assert.LessOrEqual(t, len(w.up.Log()), 6)
	}
}

// Another registry behind a redirect challenges for itself. It gets a token for
// anybody, and the credential of the target is not shown to its token server.
func TestARegistryBehindARedirectIsAskedAsAGuest(t *testing.T) {
	mirror := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users, Anonymous: true})
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users})
	mirror.Push("copy/a", "1", w.push(pullthroughtest.ImageOptions{}))
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Redirect: mirror.URL + "/v2/copy/a/manifests/1"})
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /v2/copy/a/manifests/1 401", "GET /token 200", "GET /v2/copy/a/manifests/1 200"}, paths(mirror))
	assert.False(t, mirror.Saw(canary))
	assert.True(t, mirror.Saw("repository:copy/a:pull"))
}

// FuzzRedirects: however a registry sends us around, the secret stays where it
// belongs and the way has an end.
func FuzzRedirects(f *testing.F) {
	f.Add("http://r.example/x\nhttps://r.example/y\nhttp://r.example:81/z")
	f.Add("/a\n/b\n/c\n/d\n/e\n/f\n/g\n/h\n/i")
	f.Add("//evil.example/x\nhttp://r.example/v2/")
	f.Add("https://evil.example/\nhttps://r.example/\nhttp://r.example/")
	f.Add("http://me:canary@r.example/x")
	f.Add("//canary")
	f.Add("http://R.EXAMPLE:80/x\nhttp://r.example./x\nhttp://[::ffff:169.254.169.254]/\nhttp://0x7f.1/")
	f.Add("ftp://r.example/\n\\\\evil.example\\x\nhttp:evil.example\nhttp:///x\n?q\n#f\n%zz\nhttp://r.example\t@evil.example/")
	f.Fuzz(func(t *testing.T, script string) {
		hops := strings.Split(script, "\n")
		sent := 0
		left := false
		c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent++
			at := strings.ToLower(r.URL.Scheme + "://" + strings.TrimSuffix(strings.TrimSuffix(r.URL.Host, ":80"), ":"))
			if strings.HasPrefix(r.URL.Path, "/v2/") && sent <= 2 {
				left = false
			}
			left = left || at != "http://r.example"
			if left {
				assert.Empty(t, r.Header.Get("Authorization"), "gone for good at %s", r.URL)
			}
			assert.Empty(t, r.Header.Get("Referer")+r.Header.Get("Cookie"))
			assert.Nil(t, r.URL.User)
			if r.Header.Get("Authorization") != "" || sent > 1 {
				return answer(r, []int{301, 302, 303, 307, 308}[sent%5], http.Header{"Location": {hops[sent%len(hops)]}}), nil
			}
			return answer(r, 401, http.Header{"Www-Authenticate": {`Basic realm="x"`}}), nil
		})})
		target := &upstream.Target{
			Base: mustParse(t, "http://r.example"), Name: "a", Options: upstream.Options{Retries: -1},
			Credential: give(upstream.Credential{Username: "me", AccessToken: "canary-in-redirect"}),
		}
		_, err := c.Manifest(t.Context(), target, "1", upstream.Pull)
		assert.Error(t, err)
		said := strings.ToLower(fmt.Sprintf("%v %+v", err, err))
		for _, hop := range hops { // hosts may be told, and may be called anything
			if u, err := url.Parse(hop); err == nil && u.Host != "" {
				said = strings.ReplaceAll(said, strings.ToLower(u.Host), "")
			}
		}
		assert.NotContains(t, said, "canary")
		assert.LessOrEqual(t, sent, 10)
	})
}
