package upstream_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// refuseKind pulls what upstream misbehaves about: a manifest, for which it may
// want a token, or a blob.
func (s *siege) refuseKind(t *testing.T, kind string, kinds ...error) {
	t.Helper()
	if kind == "blob" {
		s.refuseBlob(t, s.img.Layers[0].Digest, kinds...)
		return
	}
	s.refuse(t, "1", kinds...)
}

// kinds are the requests of a pull, by the path that begins them.
var kinds = map[string]string{"manifest": "/v2/a/manifests/", "blob": "/v2/a/blobs/", "token": "/token"}

func testRedirectsOnAndOn(t *testing.T) {
	t.Run("in the middle of a blob", func(t *testing.T) {
		testkit.InBubble(t, pullthroughtest.Config{}, circlesInABlob)
	})
	t.Run("when a stored tag is checked", circlesInACheck)
	for kind, path := range kinds {
		for name, next := range map[string]func(r *http.Request, hop int) string{
			"a loop":        func(r *http.Request, _ int) string { return r.URL.Path },
			"a chain of 11": func(r *http.Request, hop int) string { return fmt.Sprint(path, "/", hop+1) },
			"between two hosts": func(r *http.Request, hop int) string {
				return []string{"http://registry.test", "http://other.test"}[(hop+1)%2] + path
			},
			"with longer queries": func(r *http.Request, hop int) string { return path + "?" + strings.Repeat("x", 10_000*hop) },
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
					s.at("other.test", s.other.DialPipe)
					hop := 0
					s.handle(func(w http.ResponseWriter, r *http.Request) bool {
						ours := strings.HasPrefix(r.URL.Path, path) && (kind == "token" || r.Header.Get("Authorization") != "" || hop > 0)
						if ours && hop <= 11 {
							w.Header().Set("Location", next(r, hop))
							w.WriteHeader(http.StatusTemporaryRedirect)
							hop++
						}
						return ours
					})
					s.other.Fault(pullthroughtest.Fault{Redirect: "http://registry.test" + path})
					took := elapsed(func() { s.refuseKind(t, kind, pullthrough.ErrUnavailable) })
					assert.Zero(t, took, "it is not tried again")
					assert.LessOrEqual(t, s.Up.Count("")+s.other.Count(""), 10)
				})
			})
		}
	}
}

func testRedirectFromHTTPSToHTTP(t *testing.T) {
	for kind, path := range kinds {
		for _, to := range []string{"http://registry.test", "http://registry.test:443", "http://other.test", "HTTP://registry.test"} {
			t.Run(kind+" to "+to, func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, TLS: true}, func(t *testing.T, s *siege) {
					s.at("other.test", s.other.DialPipe)
					s.Up.Fault(pullthroughtest.Fault{Match: "GET " + path + "* 200", Redirect: to + "{path}"})
					s.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Redirect: to + "{path}"})
					took := elapsed(func() { s.refuseKind(t, kind, pullthrough.ErrUnavailable) })
					assert.Zero(t, took, "it is not tried again")
					s.assertNotDialled(t)
					s.mu.Lock()
					defer s.mu.Unlock()
					assert.NotContains(t, s.dialled, "registry.test:80")
				})
			})
		}
	}
}

// leaving are targets beyond the registry's origin.
var leaving = map[string]string{
	"another port": "http://registry.test:8080", "a subdomain": "http://cdn.registry.test", "another host": "http://other.test",
	"a longer name": "http://registry.test.other.test", "without a scheme": "//other.test", "upper case": "HTTP://CDN.REGISTRY.TEST", "a dot more": "http://registry.test.",
}

func testRedirectGoesWithoutCredentialsCookiesAndReferer(t *testing.T) {
	for _, auth := range []pullthroughtest.Auth{pullthroughtest.Basic, pullthroughtest.Bearer} {
		for name, to := range leaving {
			t.Run(fmt.Sprint(map[pullthroughtest.Auth]string{pullthroughtest.Basic: "Basic", pullthroughtest.Bearer: "Bearer"}[auth], ", ", name), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, func(t *testing.T, s *siege) {
					s.login()
					s.everywhere()
					s.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/* 200", Redirect: to + "{path}", Header: http.Header{"Set-Cookie": {"session=canary-cookie; Path=/"}}})
					s.Pull(t, "a", "1", s.img)
					assert.Equal(t, 1+len(s.img.Blobs()), s.other.Count("GET /v2/a/* 200"))
					s.assertStripped(t, s.other.Requests())
				})
			})
		}
	}
}

// everywhere puts the other registry at every name that is not upstream's.
func (s *siege) everywhere() {
	for _, host := range []string{"registry.test:8080", "cdn.registry.test", "other.test", "registry.test.other.test", "CDN.REGISTRY.TEST", "registry.test."} {
		s.at(host, s.other.DialPipe)
	}
}

// assertStripped checks that the requests tell nothing of who asks or whence.
func (s *siege) assertStripped(t *testing.T, all []pullthroughtest.Request) {
	t.Helper()
	assert.NotEmpty(t, all)
	for _, r := range all {
		for _, name := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Referer", "Origin"} {
			assert.Empty(t, r.Header[name], "%s of %s", name, r)
		}
	}
}

func testRedirectBackGoesWithoutCredentials(t *testing.T) {
	for _, auth := range []pullthroughtest.Auth{pullthroughtest.Basic, pullthroughtest.Bearer} {
		for name, to := range leaving {
			t.Run(fmt.Sprint(auth, ", ", name), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, func(t *testing.T, s *siege) {
					s.login()
					s.everywhere()
					s.handle(func(w http.ResponseWriter, r *http.Request) bool {
						if r.URL.Path != "/back" {
							return false
						}
						w.Header().Set("Content-Type", s.img.MediaType)
						_, _ = w.Write(s.img.Content)
						return true
					})
					s.Up.Fault(pullthroughtest.Fault{Match: manifests + " 200", Redirect: to + "/away"})
					s.other.Fault(pullthroughtest.Fault{Match: "GET /away*", Redirect: "http://registry.test/back"})
					m, err := s.Resolve(t.Context(), "1")
					require.NoError(t, err)
					assert.Equal(t, s.img.Digest, m.Descriptor.Digest)
					for _, r := range s.Up.Requests() {
						if r.Path == "/back" {
							s.assertStripped(t, []pullthroughtest.Request{r})
						}
					}
					assert.Equal(t, 1, s.Up.Count("GET /back 200"))
				})
			})
		}
	}
}

// closedHosts are addresses that upstream must not send us to, as hosts of URLs.
var closedHosts = []string{
	"127.0.0.1", "127.255.255.254", "[::1]", "0.0.0.0", "[::]", "169.254.169.254", "169.254.1.1", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16",
	"224.0.0.1", "[ff02::1]", "255.255.255.255",
	"[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::7f00:1]", // with an IPv4 address in them
	"[64:ff9b::a9fe:a9fe]", "[64:ff9b::127.0.0.1]", "[2002:a9fe:a9fe::1]", "[2002:7f00:1::]",
	"[::1%25lo]", "[fe80::1%25eth0]", "[fe80::a9fe:a9fe%251]", // with a zone
	"127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0x7f000001", "127.0.0.1.", // as some resolvers read them
}

// privateHosts are addresses that a rule may close.
var privateHosts = []string{"10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "[fc00::1]", "[fd12::1]", "[::ffff:10.0.0.5]", "[64:ff9b::10.0.0.5]", "[2002:a00:5::1]"}

func testAddressesThatAreNotDialled(t *testing.T) {
	for _, host := range closedHosts {
		t.Run(host, func(t *testing.T) {
			redirectRefused(t, pullthrough.Policy{}, host)
			realmRefused(t, pullthrough.Policy{}, host)
		})
	}
	for _, host := range privateHosts {
		t.Run(host+", closed", func(t *testing.T) {
			redirectRefused(t, pullthrough.Policy{BlockPrivate: true}, host)
			realmRefused(t, pullthrough.Policy{BlockPrivate: true}, host)
		})
		t.Run(host+", open", func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				s.at(strings.Trim(host, "[]"), s.other.DialPipe)
				s.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/*", Redirect: "http://" + host + "{path}"})
				s.Pull(t, "a", "1", s.img)
				assert.Equal(t, 1+len(s.img.Blobs()), s.other.Count("GET /v2/a/* 200"))
			})
		})
	}
}

// redirectRefused has upstream redirect to host, which must not be dialled.
func redirectRefused(t *testing.T, pol pullthrough.Policy, host string) {
	t.Helper()
	besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
		s.rule(pol)
		for i, port := range []string{"", ":80", ":8080"} {
			s.at(strings.Trim(host, "[]"), s.other.DialPipe)
			s.Up.Fault(pullthroughtest.Fault{Match: "GET *", Times: 2, Redirect: "http://" + host + port + "{path}"})
			took := elapsed(func() {
				s.refuse(t, strconv.Itoa(i), pullthrough.ErrUnavailable)
				s.refuseBlob(t, s.img.Layers[0].Digest, pullthrough.ErrUnavailable)
			})
			assert.Zero(t, took, "it is not tried again")
		}
		assert.Equal(t, 6, s.Up.Count("*"))
		s.assertNotDialled(t)
	})
}

// realmRefused has upstream name a token server at host, which must not be
// dialled, whether or not there is a secret to send.
func realmRefused(t *testing.T, pol pullthrough.Policy, host string) {
	t.Helper()
	for _, change := range []func(*siege){(*siege).login, func(*siege) {}} {
		besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true}, func(t *testing.T, s *siege) {
			s.rule(pol)
			change(s)
			s.at(strings.Trim(host, "[]"), s.other.DialPipe)
			challenge := `Bearer realm="http://` + host + `/token",service="registry.test"`
			s.Up.Fault(pullthroughtest.Fault{Match: manifests, Status: 401, Header: http.Header{"Www-Authenticate": {challenge}}})
			took := elapsed(func() { s.refuse(t, "1", pullthrough.ErrDenied, pullthrough.ErrUnavailable) })
			assert.Zero(t, took, "it is not tried again")
			assert.Equal(t, 1, s.Up.Count("*"))
			s.assertNotDialled(t)
		})
	}
}

// What names resolve to is looked at when it is dialled, which internal/egress
// tests. Names that need no resolver are refused as they stand.
func testNamesOfAddressesThatAreNotDialled(t *testing.T) {
	for _, host := range []string{"localhost", "LOCALHOST", "localhost.", "a.localhost", "a.b.LocalHost."} {
		t.Run(host, func(t *testing.T) {
			redirectRefused(t, pullthrough.Policy{}, host)
			realmRefused(t, pullthrough.Policy{}, host)
		})
	}
	t.Run("another machine's name", func(t *testing.T) {
		besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
			s.at("localhost.example", s.other.DialPipe)
			s.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/*", Redirect: "http://localhost.example{path}"})
			assert.Less(t, elapsed(func() { s.Pull(t, "a", "1", s.img) }), time.Second)
			assert.Equal(t, 1+len(s.img.Blobs()), s.other.Count("GET /v2/a/* 200"))
		})
	})
}
