package pullthrough_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// transportBehaviours are about what is asked again, what errors say, and how
// connections are used.
var transportBehaviours = []row{
	{"A51", "fails in passing: 408, 429, 500, 502, 503, 504, a time-out of a connection, a connection that breaks before the answer, content damaged on its way",
		"it is asked again; not so after any other status, a refused connection, an unknown host, a certificate or redirect that is refused, or when the client has gone", testPassingFailuresAreTriedAgain},
	{"A52", "asks to wait by Retry-After, or fails without a word about when",
		"a pull waits up to 10 s and fails at once beyond that, with the time in its error; without a word it waits 200 ms at most, then twice that, up to 5 s, never as long as another", testRetryAfterIsHeeded},
	{"A53", "answers 429 to a hundred pulls",
		"they wait together, and one of them asks for all", testHundredPullsWaitTogether},
	{"A54", "keeps failing",
		"a pull makes four requests, not four times four", testTriesDoNotMultiply},
	{"A55", "sends an error with a body of any kind",
		"the status decides; of the body 64 KiB are read and an OCI error code is kept", testErrorBodiesOfAnyKind},
	{"A56", "repeats secrets in its answers, or redirects to presigned URLs",
		"no password, token or query of a URL is in an error, an event, the log or an answer to a client", testSecretsAreRepeatedToNobody},
	{"A57", "sends its header slowly, one of 1 MB, or stalls in bodies",
		"a header has 30 s and 256 KiB, a body as long as it takes, and no request waits for another's", testSlowHeadersAndBodies},
	{"A58", "stops sending in a body, or sends a byte now and then",
		"after 30 s without a byte the rest is asked for anew; less than 1 KiB/s over a minute is given up", testSilentBodyIsAskedForAgain},
	{"A59", "or the network drops a connection without a word",
		"HTTP/2 connections are pinged, and the next request goes by another; a rule can ask for HTTP/1.1", testDeadConnectionsAreFound},
	{"A60", "does not answer https",
		"the pull fails, and the error says what to write where it speaks http; http is spoken if the rule's URL says http, and never otherwise", testHTTPIsNeverFallenBackTo},
	{"A82", "is given by a URL that ends in /v2 or /v2/",
		"the rule is refused, and the error says to write the URL without it; nothing is sent", testURLThatEndsInV2},
	{"A61", "sends bodies that nobody needs",
		"up to 64 KiB are read to use the connection again, longer ones end with it", testBodiesThatNobodyNeeds},
}

func TestUpstreamTransport(t *testing.T) { testkit.RunRows(t, transportBehaviours) }

// asking are the kinds of requests of a first pull, and how to make one that
// fails if upstream does.
var asking = map[string]struct {
	line   string // as in Upstream.Count
	config pullthroughtest.Config
	change func(*pullthrough.Proxy)
	pull   func(ctx context.Context, t *testing.T, p *pipeworks) error
}{
	"a manifest": {line: "GET /v2/a/manifests/*", pull: pullsManifest},
	"a blob": {line: "GET /v2/a/blobs/*", pull: func(ctx context.Context, _ *testing.T, p *pipeworks) error {
		return p.Whole(ctx, p.Layer(1000).Digest)
	}},
	"the size of a blob": {line: "GET /v2/a/blobs/*", pull: func(ctx context.Context, _ *testing.T, p *pipeworks) error {
		_, err := p.Blob(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: p.Layer(1000).Digest.String(), Head: true})
		return err
	}},
	"a token": {line: "GET /token", config: pullthroughtest.Config{Auth: pullthroughtest.Bearer}, pull: pullsManifest},
	"a token for an identity token": {
		line:   "POST /token",
		config: pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, IdentityTokens: []string{testkit.Canary}},
		change: testkit.WithCredential(pullthrough.Credential{IdentityToken: testkit.Canary}),
		pull:   pullsManifest,
	},
}

func pullsManifest(ctx context.Context, _ *testing.T, p *pipeworks) error {
	p.Layer(1000)
	_, err := p.Resolve(ctx, "1")
	return err
}

// passing are the statuses that may be over in a moment, final are others.
var (
	passing = []int{408, 429, 500, 502, 503, 504}
	final   = []int{300, 304, 400, 401, 403, 404, 405, 406, 409, 410, 418, 425, 451, 501, 505, 507, 511}
)

func testPassingFailuresAreTriedAgain(t *testing.T) {
	for name, a := range asking {
		for _, status := range passing {
			t.Run(fmt.Sprint(name, ", once ", status), func(t *testing.T) {
				inTime(t, a.config, a.change, func(t *testing.T, p *pipeworks) {
					p.Up.Fault(pullthroughtest.Fault{Match: a.line, Times: 1, Status: status})
					assert.NoError(t, a.pull(t.Context(), t, p))
					assert.Equal(t, 2, p.Up.Count(a.line))
				})
			})
		}
		for _, status := range slices.Concat(final, passing) {
			t.Run(fmt.Sprint(name, ", always ", status), func(t *testing.T) {
				inTime(t, a.config, a.change, func(t *testing.T, p *pipeworks) {
					heal := p.Up.Fault(pullthroughtest.Fault{Match: a.line, Status: status})
					assert.Error(t, a.pull(t.Context(), t, p))
					assert.Equal(t, map[bool]int{true: 4, false: 1}[slices.Contains(passing, status)], p.Up.Count(a.line))
					heal()
					if status == 404 {
						<-time.After(10 * time.Second)
					}
					assert.NoError(t, a.pull(t.Context(), t, p), "no other failure is remembered")
				})
			})
		}
		for left, tc := range map[string]struct {
			policy pullthrough.Policy
			asks   time.Duration // how long upstream is asked at most after the client has gone
		}{
			"until the client goes":       {pullthrough.Policy{Orphans: -1}, 0},
			"a little after it has gone":  {pullthrough.Policy{}, 30 * time.Second},
			"a little, and no more often": {pullthrough.Policy{Retries: 100}, 30 * time.Second},
		} {
			t.Run(name+", "+left, func(t *testing.T) {
				change := func(p *pullthrough.Proxy) {
					if a.change != nil {
						a.change(p)
					}
					testkit.WithPolicy(tc.policy)(p)
				}
				inTime(t, a.config, change, func(t *testing.T, p *pipeworks) {
					p.Up.Fault(pullthroughtest.Fault{Match: a.line, Status: 503, Header: http.Header{"Retry-After": {"5"}}})
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					start := time.Now()
					assert.ErrorIs(t, a.pull(ctx, t, p), context.DeadlineExceeded)
					assertTook(t, time.Second, start)
					asked := p.Up.Count(a.line)
					assert.Equal(t, 1, asked)
					time.Sleep(tc.asks + time.Second)
					asked = p.Up.Count(a.line)
					assert.Equal(t, tc.asks > 0, asked > 2)
					require.NoError(t, p.Idle(t.Context()))
					time.Sleep(time.Minute)
					assert.Equal(t, asked, p.Up.Count(a.line))
				})
			})
		}
	}
	t.Run("checks of stored tags", testChecksAreTriedOnce)
	t.Run("connections", testBrokenConnectionsAreTriedAgain)
	t.Run("content", testDamagedContentIsTriedAgain)
}

func testChecksAreTriedOnce(t *testing.T) {
	for _, status := range passing {
		t.Run(fmt.Sprint("a check of a stored tag, ", status), func(t *testing.T) {
			inTime(t, pullthroughtest.Config{}, testkit.EveryPull, func(t *testing.T, p *pipeworks) {
				require.NoError(t, pullsManifest(t.Context(), t, p))
				p.Settled(t)
				p.Up.Fault(pullthroughtest.Fault{Status: status})
				m, err := p.Resolve(t.Context(), "1")
				require.NoError(t, err)
				assert.Equal(t, pullthrough.SourceStale, m.Source)
				time.Sleep(10 * time.Second)
				assert.Equal(t, 1, p.Up.Count(fmt.Sprint("* ", status)), "what is stored is worth one request")
			})
		})
	}
}

// testDamagedContentIsTriedAgain: damage on the way is not upstream's last word.
func testDamagedContentIsTriedAgain(t *testing.T) {
	for _, kind := range []string{"manifests", "blobs"} {
		for name, times := range map[string]int{"once": 1, "always": 0} {
			t.Run("damaged "+kind+", "+name, func(t *testing.T) {
				inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
					img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
					p.Up.Push("a", "1", img)
					p.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/" + kind + "/*", Times: times, Flip: new(int64(-2))})
					_, err := p.Resolve(t.Context(), img.Digest.String())
					if kind == "blobs" {
						err = p.Whole(t.Context(), img.Layers[0].Digest)
					}
					if times == 1 {
						assert.NoError(t, err)
					} else {
						assert.ErrorIs(t, err, pullthrough.ErrDigest)
					}
					assert.Equal(t, 2, p.Up.Count("GET /v2/a/"+kind+"/*"))
				})
			})
		}
	}
}

// persistent are faults that do not end, and how many requests they cost.
var persistent = map[string]struct {
	config pullthroughtest.Config
	change func(*pullthrough.Proxy)
	fault  pullthroughtest.Fault
	want   map[string]int
}{
	"registry": {fault: pullthroughtest.Fault{Match: "GET /v2/*", Status: 503}, want: map[string]int{"GET /v2/*": 4}},
	"registry, with tokens": {
		config: pullthroughtest.Config{Auth: pullthroughtest.Bearer},
		fault:  pullthroughtest.Fault{Match: "GET /v2/* 200", Status: 503},
		want:   map[string]int{"GET /v2/* 503": 4, "GET /v2/* 401": 1, "GET /token 200": 1},
	},
	"token server": {
		config: pullthroughtest.Config{Auth: pullthroughtest.Bearer},
		fault:  pullthroughtest.Fault{Match: "GET /token", Status: 503},
		want:   map[string]int{"GET /v2/* 401": 1, "GET /token 503": 4},
	},
	"new connections":            {fault: pullthroughtest.Fault{CutAfter: new(int64(-1)), CloseDelimited: true}, want: map[string]int{"*": 4}},
	"redirects in circles":       {fault: pullthroughtest.Fault{Redirect: "{path}"}, want: map[string]int{"*": 6}},
	"redirects that are refused": {fault: pullthroughtest.Fault{Redirect: "http://u:p@127.0.0.1/"}, want: map[string]int{"*": 1}},
	"as often as the rule says": {
		change: testkit.WithPolicy(pullthrough.Policy{Retries: 1}),
		fault:  pullthroughtest.Fault{Status: 500},
		want:   map[string]int{"*": 2},
	},
	"never, if the rule says so": {
		change: testkit.WithPolicy(pullthrough.Policy{Retries: -1}),
		fault:  pullthroughtest.Fault{Status: 500},
		want:   map[string]int{"*": 1},
	},
}

func testTriesDoNotMultiply(t *testing.T) {
	for kind, pull := range map[string]func(context.Context, *testing.T, *pipeworks) error{
		"manifests": pullsManifest, "blobs": asking["a blob"].pull,
	} {
		for name, c := range persistent {
			t.Run(kind+", "+name, func(t *testing.T) {
				inTime(t, c.config, c.change, func(t *testing.T, p *pipeworks) {
					p.Up.Fault(c.fault)
					assert.Error(t, pull(t.Context(), t, p))
					for line, n := range c.want {
						assert.Equal(t, n, p.Up.Count(line), line)
					}
				})
			})
		}
		t.Run(kind+", redirects between hosts", func(t *testing.T) {
			cdn := pullthroughtest.New(t, pullthroughtest.Config{})
			inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
				p.others = []*pullthroughtest.Upstream{cdn}
				p.Up.Fault(pullthroughtest.Fault{Redirect: cdn.URL + "{path}"})
				cdn.Fault(pullthroughtest.Fault{Redirect: p.Up.URL + "{path}"})
				assert.Error(t, pull(t.Context(), t, p))
				assert.Equal(t, 3, p.Up.Count("*"))
				assert.Equal(t, 3, cdn.Count("*"))
			})
		})
		t.Run(kind+", behind a redirect", func(t *testing.T) {
			cdn := pullthroughtest.New(t, pullthroughtest.Config{})
			inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
				p.others = []*pullthroughtest.Upstream{cdn}
				p.Up.Fault(pullthroughtest.Fault{Redirect: cdn.URL + "{path}"})
				cdn.Fault(pullthroughtest.Fault{Status: 503})
				assert.Error(t, pull(t.Context(), t, p))
				assert.Equal(t, 4, p.Up.Count("*"), "a redirect may be good for one use")
				assert.Equal(t, 4, cdn.Count("*"))
			})
		})
	}
}

func testErrorBodiesOfAnyKind(t *testing.T) {
	kinds := map[int]error{
		400: pullthrough.ErrUnavailable, 403: pullthrough.ErrDenied, 404: pullthrough.ErrNotFound,
		429: pullthrough.ErrRateLimited, 500: pullthrough.ErrUnavailable,
	}
	for name, fault := range map[string]pullthroughtest.Fault{
		"1 GB":                      {Body: []byte(`{"errors":[{"code":"`), Extend: 1 << 30, NoLength: true},
		"1 GB, announced":           {Body: []byte(`{"errors":[{"code":"`), Extend: 1 << 30, Header: announced(1<<30 + 20)},
		"no end":                    {Body: []byte(`<html>`), Extend: math.MaxInt64, CloseDelimited: true},
		"nothing":                   {Body: []byte{}},
		"a page":                    {Body: []byte("<html><body>" + strings.Repeat("<script>x</script>\x1b[2J", 1000))},
		"no errors":                 {Body: []byte(`{"errors":null}`)},
		"empty errors":              {Body: []byte(`{"errors":[]}`)},
		"errors of the wrong type":  {Body: []byte(`{"errors":[{"code":5,"message":{}}]}`)},
		"an array":                  {Body: []byte(`[]`)},
		"nested 10,000 deep":        {Body: []byte(`{"errors":` + strings.Repeat(`[`, 10_000) + strings.Repeat(`]`, 10_000) + `}`)},
		"details nested deep":       {Body: []byte(`{"errors":[{"code":"X","detail":` + strings.Repeat(`{"a":`, 10_000) + `1` + strings.Repeat(`}`, 10_000) + `}]}`)},
		"a code of 60 KB":           {Body: []byte(`{"errors":[{"code":"` + strings.Repeat("X", 60_000) + `"}]}`)},
		"a code with line breaks":   {Body: []byte(`{"errors":[{"code":"A\nB\u001b[2J\u0000","message":"C\r\nD"}]}`)},
		"no text":                   {Body: []byte("\xff\xfe\x00\x01")},
		"cut":                       {Body: []byte(`{"errors":[{"code":"DENIED"}]}`), CutAfter: new(int64(10))},
		"a code of another status":  {Body: []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)},
		"another code of another":   {Body: []byte(`{"errors":[{"code":"DENIED"}]}`)},
		"a third code of another":   {Body: []byte(`{"errors":[{"code":"TOOMANYREQUESTS"}]}`)},
		"a code, and another later": {Body: []byte(`{"errors":[{"code":"UNKNOWN"},{"code":"DENIED"}]}`)},
	} {
		for status, kind := range kinds {
			t.Run(fmt.Sprint(name, ", ", status), func(t *testing.T) {
				inTime(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{Retries: -1}), func(t *testing.T, p *pipeworks) {
					p.Layer(1)
					fault.Status = status
					p.Up.Fault(fault)
					_, err := p.Resolve(t.Context(), "1")
					require.ErrorIs(t, err, kind)
					assert.Less(t, len(err.Error()), 1000)
					assert.False(t, strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }), "%q", err)
					if strings.Contains(name, "code of another") || strings.HasPrefix(name, "another code") {
						_, code, _ := strings.Cut(string(fault.Body), `"code":"`)
						code, _, _ = strings.Cut(code, `"`)
						assert.ErrorContains(t, err, code)
					}
					assert.LessOrEqual(t, spent(p.World, "/manifests/"), int64(64<<10+readAhead))
					assert.Equal(t, 1, p.Up.Count("*"))
				})
			})
		}
	}
}
