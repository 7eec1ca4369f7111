package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// challenge has upstream name a token server of this test's, for as long as it
// has not healed.
func (s *siege) challenge(lines ...string) {
	s.Up.Fault(pullthroughtest.Fault{Match: "* 401", Status: 401, Header: http.Header{"Www-Authenticate": lines}})
}

func bearer(realm string) string { return `Bearer realm="` + realm + `",service="registry.test"` }

// theirs are token servers that the rule says nothing of, and that look as if it
// did.
var theirs = []string{
	"http://other.test/token", "http://registry.test.other.test/token", "http://otherregistry.test/token", "http://cdn.registry.test/token", "http://test/token",
	"http://registry.test:80@other.test/token", "http://other.test/registry.test", "http://other.test?registry.test", `http://other.test\\@registry.test/token`,
	"http://auth.docker.io/token",
}

func testTokenServerThatTheRuleDoesNotAllow(t *testing.T) {
	for _, realm := range theirs {
		t.Run(realm, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(t *testing.T, s *siege) {
				s.login()
				for _, host := range []string{"other.test", "registry.test.other.test", "otherregistry.test", "cdn.registry.test", "test", "auth.docker.io"} {
					s.at(host, s.other.DialPipe)
				}
				s.challenge(bearer(realm))
				assert.Zero(t, elapsed(func() { s.refuse(t, "1", pullthrough.ErrDenied) }))
				s.refuseBlob(t, s.img.Layers[0].Digest, pullthrough.ErrDenied)
				assert.LessOrEqual(t, s.Up.Count("*"), 2)
				assert.False(t, s.Up.Saw(testkit.Canary))
				s.assertNotDialled(t)
			})
		})
	}
	t.Run("after it was at another place", func(t *testing.T) {
		besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Anonymous: true}, func(t *testing.T, s *siege) {
			s.at("other.test", s.other.DialPipe)
			s.challenge(bearer("http://other.test/gone"))
			s.refuse(t, "1", pullthrough.ErrUnavailable)
			assert.Equal(t, []string{"GET /gone 404"}, s.other.Log())
			assert.Equal(t, 1, s.Up.Count("*"))
		})
	})
}

func testHTTPTokenServerOfAnHTTPSRegistry(t *testing.T) {
	for _, realm := range []string{"http://registry.test/token", "http://registry.test:443/token", "http://other.test/token", "HTTP://REGISTRY.TEST/token"} {
		for _, change := range []func(*siege){(*siege).login, func(*siege) {}} {
			t.Run(realm, func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, TLS: true, Users: testkit.Users, Anonymous: true}, func(t *testing.T, s *siege) {
					change(s)
					s.at("other.test", s.other.DialPipe)
					s.challenge(bearer(realm))
					s.refuse(t, "1", pullthrough.ErrDenied)
					assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, s.Up.Log())
					s.assertNotDialled(t)
					s.mu.Lock()
					defer s.mu.Unlock()
					assert.NotContains(t, s.dialled, "registry.test:80")
				})
			})
		}
	}
}

func testTrickURLsOfTokenServers(t *testing.T) {
	for name, realm := range map[string]string{
		"userinfo": "http://me:x@registry.test/token", "a user": "http://me@registry.test/token", "no userinfo": "http://@registry.test/token", "fragment": "http://registry.test/token#x",
		"line breaks": "http://registry.test/token\r\nX-Evil: 1", "an encoded host": "http://registry%2etest/token", "64 KiB": "http://registry.test/token?" + strings.Repeat("x", 64<<10),
		"a letter that looks alike": "http://r\u0435gistry.test/token", "the same in ASCII": "http://xn--rgistry-2of.test/token", "full-width dots": "http://registry\uff0etest/token",
		"a space": "http://registry.test /token", "a port that is none": "http://registry.test:80x/token", "no slashes": "http:registry.test/token",
		"three slashes": "http:///registry.test/token", "a backslash": `http:\\\\registry.test\\token`, "another scheme": "javascript://registry.test/token", "a file": "file:///etc/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true}, func(t *testing.T, s *siege) {
				s.login()
				s.challenge(bearer(realm))
				s.refuse(t, "1", pullthrough.ErrDenied)
				assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, s.Up.Log())
				s.assertNotDialled(t)
			})
		})
	}
	for name, query := range map[string]string{
		"ours are there already": "service=x&scope=repository:other/secret:pull,push&scope=registry:catalog:*&account=7", "with semicolons": "account=7;scope=registry:catalog:*;service=x",
		"upper case": "SCOPE=x&account=7", "grant": "grant_type=password&account=7&offline_token=true", "an encoded one": "acc%6funt=7&sc%6fpe=x", "broken": "account=7&%zz",
	} {
		t.Run("a query, "+name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(t *testing.T, s *siege) {
				s.login()
				s.challenge(bearer("http://registry.test/token?" + query))
				s.Pull(t, "a", "1", s.img)
				q := s.tokenQueries(t)
				require.Len(t, q, 1)
				assert.Equal(t, []string{"repository:a:pull"}, q[0]["scope"], "ours count")
				assert.Equal(t, []string{"registry.test"}, q[0]["service"])
				assert.LessOrEqual(t, s.Up.Count("* 401"), 1)
			})
		})
	}
}

// tokenQueries are the queries of the token requests.
func (s *siege) tokenQueries(t *testing.T) (all []url.Values) {
	t.Helper()
	for _, r := range s.Up.Requests() {
		if r.Path == "/token" {
			q, err := url.ParseQuery(r.Query)
			assert.NoError(t, err, r.Query)
			all = append(all, q)
		}
	}
	return all
}

const postedCanary = "canary-identity-token"

// withIdentity has the rule's credential be an identity token.
func (s *siege) withIdentity() {
	s.Secrets.Allow(postedCanary, s.Up)
	s.credential(pullthrough.Credential{IdentityToken: postedCanary})
}

var identities = pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, IdentityTokens: []string{postedCanary}}

func testTokenRequestIsNotPostedAgain(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for name, to := range leaving {
			t.Run(fmt.Sprint("GET, ", status, ", ", name), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(t *testing.T, s *siege) {
					s.login()
					s.everywhere()
					s.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Status: status, Redirect: to + "/token"})
					s.refuse(t, "1", pullthrough.ErrUnavailable)
					assert.Equal(t, 2, s.Up.Count("*"), "it is not tried again")
					s.assertNotDialled(t)
				})
			})
		}
		for name, to := range map[string]string{"another host": "http://other.test/token", "the same": "http://registry.test/token", "a path": "/other"} {
			t.Run(fmt.Sprint("POST, ", status, ", ", name), func(t *testing.T) {
				besieged(t, identities, func(t *testing.T, s *siege) {
					s.withIdentity()
					s.everywhere()
					s.Up.Fault(pullthroughtest.Fault{Match: "POST /token*", Status: status, Redirect: to})
					s.refuse(t, "1", pullthrough.ErrUnavailable)
					assert.Equal(t, []string{"GET /v2/a/manifests/1 401", fmt.Sprint("POST /token ", status)}, s.Up.Log(), "it is posted once")
					s.assertNotDialled(t)
				})
			})
		}
	}
}

func testOtherThingsInPlaceOfAToken(t *testing.T) {
	for name, body := range map[string]string{
		"10 MB": `{"token":"` + strings.Repeat("x", 10<<20) + `"}`, "17 KiB": `{"token":"` + strings.Repeat("x", 17<<10) + `"}`, "much beside it": `{"x":"` + strings.Repeat("x", 1<<20) + `","token":"abcdefgh"}`,
		"line breaks": `{"token":"abcdefgh\r\nX-Evil: 1"}`,
		"a space":     `{"token":"abcd efgh"}`, "NUL": `{"token":"abcd\u0000efgh"}`, "no ASCII": `{"token":"abcdéfgh"}`, "a tab": `{"token":"abcd\tefgh"}`,
		"arrays in arrays": strings.Repeat("[", 60_000), "in a token": `{"token":` + strings.Repeat("[", 60_000), "objects in objects": strings.Repeat(`{"token":`, 7000),
		"a page": "<!doctype html><title>Log in</title>", "nothing": "", "null": "null", "an array": "[]", "a string": `"abcdefgh"`, "empty": `{"token":""}`, "a number": `{"token":12345678}`,
		"an object in it": `{"token":{"x":1}}`, "two documents": `{"token":"abcdefgh"}{"token":"abcdefgh"}`, "half": `{"token":"abcd`,
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(t *testing.T, s *siege) {
				s.login()
				s.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Body: []byte(body)})
				cost := testkit.Allocated(func() {
					e := s.refuse(t, "1", pullthrough.ErrUnavailable)
					assert.NotContains(t, e.Error(), "abcd", "what could be a token is not repeated")
				})
				assert.Less(t, cost, uint64(8<<20))
				assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200"}, s.Up.Log())
			})
		})
	}
}

func test401WhateverIsSent(t *testing.T) {
	for auth, name := range map[pullthroughtest.Auth]string{pullthroughtest.Basic: "Basic", pullthroughtest.Bearer: "Bearer"} {
		t.Run(name+", for ever", func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, func(t *testing.T, s *siege) {
				s.login()
				s.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: 401})
				for range 2 {
					s.Up.Reset()
					assert.Zero(t, elapsed(func() { s.refuse(t, "1", pullthrough.ErrDenied) }))
					assert.LessOrEqual(t, s.Up.Count("GET /v2/*"), 2, "one more try, no more")
					assert.LessOrEqual(t, s.Up.Count("GET /token*"), 1)
				}
			})
		})
		t.Run(name+", for a while", func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, func(t *testing.T, s *siege) {
				s.login()
				_, err := s.Resolve(t.Context(), "1")
				require.NoError(t, err)
				s.Up.Reset()
				s.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: 401})
				s.PullBlob(t, "a", s.img.Layers[0].Digest)
				assert.Equal(t, 2, s.Up.Count("GET /v2/*"))
				assert.LessOrEqual(t, s.Up.Count("GET /token*"), 1)
			})
		})
	}
	for name, lines := range manyChallenges {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(t *testing.T, s *siege) {
				s.login()
				s.challenge(lines...)
				before := testkit.CPUTicks()
				cost := testkit.Allocated(func() { s.refuse(t, "1", pullthrough.ErrDenied, pullthrough.ErrUnavailable) })
				assert.Less(t, testkit.CPUTicks()-before, int64(100), "the parser is not linear")
				assert.Less(t, cost, uint64(8<<20))
				assert.LessOrEqual(t, s.Up.Count("*"), 3)
			})
		})
	}
}

// thousand returns a line with the numbers from 0 to 999.
func thousand(line string) (all []string) {
	for i := range 1000 {
		all = append(all, fmt.Sprintf(line, i))
	}
	return all
}

// manyChallenges are WWW-Authenticate lines that there is no end of, or no use.
var manyChallenges = map[string][]string{
	"1,000 lines":      thousand(`Bearer realm="http://registry.test/%d",service="x"`),
	"1,000 in a line":  {strings.Join(thousand(`X%d a="b"`), ", ")},
	"1,000 parameters": {"Bearer " + strings.Join(thousand(`p%d="x"`), ", ")},
	"200,000 commas":   {"Bearer " + strings.Repeat(",", 200_000)},
	"200,000 quotes":   {"Bearer realm=" + strings.Repeat(`"`, 200_000)},
	"no end":           {`Bearer realm="http://registry.test/token` + strings.Repeat(`\"`, 100_000)},
	"no challenge":     {""},
	"unknown":          {"Negotiate", "Digest realm=x", `Custom realm="http://registry.test/token"`},
}

func testTokenAnswerBeforeTheRequestIsRead(t *testing.T) {
	token := func(s *siege) string {
		body := `{"token":"` + s.Up.IssueToken(time.Hour, "repository:a:pull") + `"}`
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for name, tc := range map[string]struct {
		answer func(s *siege) string
		ok     bool
	}{
		"with a token":           {token, true},
		"with a refusal":         {func(*siege) string { return "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n" }, false},
		"with half a token":      {func(s *siege) string { return token(s)[:100] }, false},
		"with a header only":     {func(s *siege) string { return token(s)[:20] }, false},
		"with 100 Continue":      {func(*siege) string { return "HTTP/1.1 100 Continue\r\n\r\n" }, false},
		"with nothing":           {func(*siege) string { return "" }, false},
		"with 1,000 times early": {func(*siege) string { return strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n", 1000) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, identities, func(t *testing.T, s *siege) {
				s.credential(pullthrough.Credential{IdentityToken: strings.Repeat("x", 200<<10)})
				answer := tc.answer(s)
				s.at("registry.test:5001", hangUp(answer))
				s.challenge(bearer("http://registry.test:5001/token"))
				took := elapsed(func() {
					_, err := s.Resolve(t.Context(), "1")
					if !tc.ok {
						s.assertRefusal(t, "1", err, pullthrough.ErrDenied, pullthrough.ErrUnavailable)
					}
				})
				assert.LessOrEqual(t, took, time.Minute)
				assert.LessOrEqual(t, s.Up.Count("*"), 2)
				s.at("registry.test:5001", s.Up.DialPipe)
				s.withIdentity()
			})
		})
	}
}

// hangUp returns a way to a server that reads the header of a request and no
// more, answers, and then neither reads nor writes.
func hangUp(answer string) dialFunc {
	return serving(func(conn io.ReadWriter) {
		var head strings.Builder
		for p := make([]byte, 1); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
			if _, err := conn.Read(p); err != nil {
				return
			}
			head.Write(p)
		}
		_, _ = io.WriteString(conn, answer)
	})
}
