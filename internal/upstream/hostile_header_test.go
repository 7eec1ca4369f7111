package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func testHeaderByteByByte(t *testing.T) {
	for kind, path := range map[string]string{"manifest": "/v2/a/manifests/", "blob": "/v2/a/blobs/", "token": "/token"} {
		t.Run(kind, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
				s.handle(func(w http.ResponseWriter, r *http.Request) bool {
					ours := strings.HasPrefix(r.URL.Path, path) && (path == "/token" || r.Header.Get("Authorization") != "")
					if ours {
						dribble(t, w, "HTTP/1.1 200 OK\r\nX: ")
					}
					return ours
				})
				took := elapsed(func() { s.slow(t, kind) })
				assert.Equal(t, 30*time.Second, took, "whoever dribbles once is not asked again")
			})
		})
	}
}

// dribble sends a byte per second, beginning with those given, for as long as
// somebody listens.
func dribble(t *testing.T, w http.ResponseWriter, beginning string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if !assert.NoError(t, err) {
		return
	}
	defer func() { _ = conn.Close() }()
	for i := 0; ; i++ {
		char := "x"
		if i < len(beginning) {
			char = beginning[i : i+1]
		}
		if _, err := io.WriteString(conn, char); err != nil {
			return
		}
		<-time.After(time.Second)
	}
}

func testMalformedDigestHeaders(t *testing.T) {
	wrong := digest.FromString("wrong").String()
	for name, said := range map[string][]string{
		"wrong": {wrong}, "wrong twice": {wrong, wrong}, "wrong of another length": {"sha512:" + testkit.Hex64 + testkit.Hex64}, "a path": {"../../x"}, "a path in a digest": {"sha256:../../x"},
		"no digest": {"latest"}, "in quotes": {`"` + wrong + `"`}, "upper case": {"SHA256:" + strings.ToUpper(testkit.Hex64)}, "a megabyte": {"sha256:" + strings.Repeat("0", 1<<20)},
		"one algorithm more": {"md5:d41d8cd98f00b204e9800998ecf8427e"},
		"two in one":         {wrong + "," + wrong},
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				var heard testkit.Events
				s.OnEvent = heard.On
				s.Up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/*", Header: http.Header{"Docker-Content-Digest": said}})
				s.Pull(t, "a", "1", s.img)
				assert.True(t, wrongDigest(&heard, "1"), "the host is told")
				s.rule(pullthrough.Policy{TagTTL: pullthrough.EveryPull})
				_, err := s.Resolve(t.Context(), "1") // and by HEAD
				require.NoError(t, err)
				for _, r := range s.Up.Requests() {
					if strings.Contains(r.Path, "/manifests/") {
						assert.Contains(t, []string{"/v2/a/manifests/1", "/v2/a/manifests/" + strings.ToLower(strings.Trim(said[0], `"`))}, r.Path)
						assert.NotContains(t, r.Path, "..")
						assert.Less(t, len(r.Path), 200)
					}
				}
				_, stored := s.Stored(t, said[0])
				assert.Error(t, stored)
				s.refuseIfStrict(t)
			})
		})
	}
}

// refuseIfStrict pulls what upstream names wrongly by a rule that minds.
func (s *siege) refuseIfStrict(t *testing.T) {
	t.Helper()
	s.rule(pullthrough.Policy{RefuseWrongDigest: true})
	s.Up.Push("a", "strict", s.img)
	s.refuse(t, "strict", pullthrough.ErrDigest)
	s.rule(pullthrough.Policy{})
}

func testOddContentTypes(t *testing.T) {
	oddTypes := map[string]string{
		"line breaks": "application/x\r\nX-Evil: 1", "10 KB": "application/" + strings.Repeat("x", 10<<10) + "+json", "no ASCII": "application/v\xc3\xa4+json",
		"a quote": `application/"evil"+json`, "markup": "application/<evil>+json", "a type of its own": "application/vnd.evil+json", "no type": ";;;", "nonsense in parameters": `application/json; charset="evil`,
	}
	for _, mediaType := range []string{ocispec.MediaTypeImageManifest, ""} {
		for name, odd := range oddTypes {
			t.Run(fmt.Sprintf("%s, mediaType %t", name, mediaType != ""), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
					s.pushRaw(odd, strings.Replace(string(s.img.Content), `"mediaType":"`+ocispec.MediaTypeImageManifest+`",`, map[bool]string{true: `"mediaType":"` + mediaType + `",`}[mediaType != ""], 1))
					s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Header: http.Header{"Content-Type": {odd}}})
					answer := s.ask(t, http.MethodGet, testkit.ManifestPath("a", "1"))
					if answer.Code == http.StatusOK {
						assert.Equal(t, ocispec.MediaTypeImageManifest, answer.Header().Get("Content-Type"), "types come from a list")
					} else {
						assert.Equal(t, http.StatusBadGateway, answer.Code)
						assert.Equal(t, "application/json", answer.Header().Get("Content-Type"))
					}
					blob := s.ask(t, http.MethodGet, testkit.BlobPath("a", s.img.Layers[0].Digest))
					assert.Equal(t, http.StatusOK, blob.Code)
					assert.Equal(t, "application/octet-stream", blob.Header().Get("Content-Type"))
					said := strings.ToLower(fmt.Sprint(answer.Header(), blob.Header()))
					assert.NotContains(t, said, "evil")
					assert.NotContains(t, answer.Body.String(), "evil")
					assert.Less(t, len(said), 2000)
					assert.LessOrEqual(t, s.Up.Count("*"), 2)
				})
			})
		}
	}
}

// ours are the headers of our answers; upstream can add none.
var ours = []string{"Accept-Ranges", "Content-Length", "Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version", "Etag", "X-Content-Type-Options"}

func testHeadersThatWouldAlterOurAnswer(t *testing.T) {
	evil := http.Header{
		"Connection": {"X-Evil"}, "X-Evil": {"evil"}, "Location": {"http://evil.test/"}, "Docker-Upload-Uuid": {"evil"}, "Set-Cookie": {"evil=1"},
		"Content-Disposition": {"attachment; filename=evil"}, "Content-Encoding": {"evil"}, "Content-Language": {"evil"}, "Content-Location": {"/evil"},
		"Access-Control-Allow-Origin": {"evil"}, "Strict-Transport-Security": {"evil"}, "Link": {"<http://evil.test/>; rel=next"}, "Warning": {`299 - "evil"`},
		"Www-Authenticate": {`Basic realm="evil"`}, "Cache-Control": {"evil"}, "Age": {"1"}, "Expires": {"evil"}, "Last-Modified": {"evil"}, "Vary": {"evil"},
		"Via": {"evil"}, "Server": {"evil"}, "Refresh": {"0; evil"}, "Trailer": {"X-Evil"}, "Upgrade": {"evil"}, "Alt-Svc": {"evil"}, "Content-Range": {"bytes 0-1/2"},
		"Docker-Distribution-Api-Version": {"evil"}, "Etag": {`"evil"`}, "Content-Security-Policy": {"evil"}, "Accept-Ranges": {"evil"}, "Retry-After": {"3"},
	}
	for _, status := range []int{0, 403, 404, 429, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				s.Up.Fault(pullthroughtest.Fault{Status: status, Header: evil})
				for _, path := range []string{testkit.ManifestPath("a", "1"), testkit.BlobPath("a", s.img.Layers[0].Digest)} {
					for _, method := range []string{http.MethodHead, http.MethodGet} {
						answer := s.ask(t, method, path)
						assert.Equal(t, status == 0, answer.Code == http.StatusOK, "%d", answer.Code)
						for name, values := range answer.Header() {
							if name != "Retry-After" || status != 429 && status != 503 {
								assert.Contains(t, ours, name)
							}
							assert.NotContains(t, strings.ToLower(strings.Join(values, " ")), "evil", name)
						}
						assert.NotContains(t, answer.Body.String(), "evil")
					}
				}
				assert.Positive(t, s.Up.Count("*"))
			})
		})
	}
}

func testAbsurdRetryAfter(t *testing.T) {
	for _, status := range []int{429, 503} {
		kind := map[int]error{429: pullthrough.ErrRateLimited, 503: pullthrough.ErrUnavailable}[status]
		for name, v := range map[string]string{
			"three years": "99999999", "beyond numbers": "99999999999999999999999", "the year 9999": "Fri, 31 Dec 9999 23:59:59 GMT", "a day": "86400",
		} {
			t.Run(fmt.Sprint(status, " ", name), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
					s.Up.Fault(pullthroughtest.Fault{Match: manifests, Status: status, Header: http.Header{"Retry-After": {v}}})
					var e *pullthrough.Error
					assert.Zero(t, elapsed(func() { e = s.refuse(t, "1", kind) }), "nobody waits that long")
					assert.LessOrEqual(t, e.RetryAfter, 24*time.Hour)
					assert.Positive(t, e.RetryAfter)
					assert.Equal(t, 1, s.Up.Count("*"))
					s.Up.Heal()
					assert.LessOrEqual(t, elapsed(func() { s.eventually(t, "1") }), 15*time.Second, "nor is the rule out of order for that long")
				})
			})
		}
		for name, v := range map[string]string{
			"negative": "-5", "a fraction": "1.5", "no number": "soon", "zero": "0", "the past": "Thu, 01 Jan 1970 00:00:00 GMT", "nothing": "", "with a unit": "5s", "signed": "+3",
		} {
			t.Run(fmt.Sprint(status, " ", name), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
					s.Up.Fault(pullthroughtest.Fault{Match: manifests, Status: status, Header: http.Header{"Retry-After": {v}}})
					took := elapsed(func() { assert.Zero(t, s.refuse(t, "1", kind).RetryAfter) })
					assert.Less(t, took, 5*time.Second)
					assert.LessOrEqual(t, s.Up.Count("*"), 4)
				})
			})
		}
	}
}

// eventually pulls ref, once a second, until it is served.
func (s *siege) eventually(t *testing.T, ref string) {
	t.Helper()
	for range 600 {
		if _, err := s.Resolve(t.Context(), ref); err == nil {
			return
		}
		<-time.After(time.Second)
	}
	assert.Fail(t, "it is never served")
}

func testNextPageElsewhereIsNotAskedFor(t *testing.T) {
	besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
		s.at("other.test", s.other.DialPipe)
		link := http.Header{"Link": {`<http://other.test/v2/a/tags/list?last=x>; rel="next"`, `</v2/a/manifests/2>; rel="next"`}}
		s.Up.Fault(pullthroughtest.Fault{Header: link})
		for _, list := range []string{"/v2/hub/a/tags/list", "/v2/hub/a/tags/list?n=1"} {
			answer := s.ask(t, http.MethodGet, list)
			assert.Equal(t, http.StatusNotFound, answer.Code)
			assert.Empty(t, answer.Header().Get("Link"))
		}
		assert.Empty(t, s.Up.Log(), "tags are not asked for")
		answer := s.ask(t, http.MethodGet, "/v2/hub/a/referrers/"+s.img.Digest.String())
		assert.Equal(t, http.StatusBadGateway, answer.Code, "the next page is not of this list")
		assert.Empty(t, answer.Header().Get("Link"))
		assert.Equal(t, 1, s.Up.Count("*"))
		s.Up.Reset()
		s.Pull(t, "a", "1", s.img)
		assert.Equal(t, 1+len(s.img.Blobs()), s.Up.Count("*"))
		s.assertNotDialled(t)
	})
}

func testWebPageForEveryRequest(t *testing.T) {
	page := func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<!doctype html><title>Welcome</title>")
		return true
	}
	for _, auth := range []pullthroughtest.Auth{pullthroughtest.Open, pullthroughtest.Bearer} {
		t.Run(map[pullthroughtest.Auth]string{pullthroughtest.Open: "everywhere", pullthroughtest.Bearer: "behind a token"}[auth], func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: auth}, func(t *testing.T, s *siege) {
				s.rule(pullthrough.Policy{TagTTL: pullthrough.EveryPull})
				stored := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5})
				s.Up.Push("a", "stored", stored)
				s.Pull(t, "a", "stored", stored)
				s.Up.Reset()
				s.handle(page)
				e := s.refuse(t, "1", pullthrough.ErrUnavailable)
				assert.Contains(t, e.Error(), "text/html")
				status, _, message := pullthrough.OCI(e)
				assert.Equal(t, http.StatusBadGateway, status)
				assert.NotContains(t, message, "Welcome", "clients do not read upstream's text")
				s.refuse(t, s.img.Digest.String(), pullthrough.ErrDigest, pullthrough.ErrUnavailable)
				s.refuseBlob(t, s.img.Layers[0].Digest, pullthrough.ErrDigest, pullthrough.ErrUnavailable)
				assert.LessOrEqual(t, s.Up.Count("*"), 6)
				m, err := s.Resolve(t.Context(), "stored")
				require.NoError(t, err)
				assert.Equal(t, pullthrough.SourceStale, m.Source)
			})
		})
	}
	t.Run("for a token", func(t *testing.T) {
		besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
			s.handle(func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Path == "/token" && page(w, r) })
			s.refuse(t, "1", pullthrough.ErrUnavailable)
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200"}, s.Up.Log())
		})
	})
}

// wrongDigest reports whether the fetch of ref was told to have met one.
func wrongDigest(e *testkit.Events, ref string) bool {
	for _, event := range e.Of(pullthrough.EventFetch) {
		if event.Request.Ref == ref {
			return event.WrongDigest
		}
	}
	return false
}
