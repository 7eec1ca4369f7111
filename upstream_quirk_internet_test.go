package pullthrough_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// signature is the secret in the URLs that registries redirect to.
const signature = "canary-signature"

// internet has registries, token servers and blob stores under their real
// names, all of it in memory: a row makes it outside of a synctest bubble, and
// pulls from it inside.
type internet map[string]*pullthroughtest.Upstream

func (n internet) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	up, ok := n[name]
	if err != nil || !ok || port != "443" {
		return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
	}
	conn, err := up.DialPipe(ctx, network, address)
	if err != nil {
		return nil, err
	}
	// Nobody vouches for real names here: registry.test stands for each of them.
	secure := tls.Client(conn, &tls.Config{RootCAs: up.Roots(), ServerName: "registry.test"})
	return secure, secure.HandshakeContext(ctx)
}

// quirk is a proxy with one rule, for a registry under its real name.
type quirk struct {
	*testkit.World
	hosts internet
	name  string // of the image's repository upstream
	img   *pullthroughtest.Image
	told  []string // hosts that must be told the credentials; nobody else may
	shown []string // other hosts that may see an Authorization header
	log   *lockedLog
}

// pullFrom returns a proxy for registry, which is all that the rule says of its
// upstream. Call it in the bubble.
func (n internet) pullFrom(t *testing.T, registry string, change func(*pullthrough.Proxy)) *quirk {
	t.Helper()
	q := &quirk{hosts: n, log: new(lockedLog)}
	transport := &http.Transport{
		DialTLSContext: n.dialTLS,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("nothing here speaks plain http")
		},
		DisableCompression: true,
	}
	q.World = &testkit.World{Up: n[registry], Mem: memstore.New()}
	q.Proxy = &pullthrough.Proxy{
		Store:     q.Mem,
		Rules:     pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: registry}},
		SpoolDir:  t.TempDir(),
		Transport: transport,
		Logger:    testkit.TextLogger(q.log),
	}
	if change != nil {
		change(q.Proxy)
	}
	t.Cleanup(func() {
		assert.NoError(t, q.Shutdown(context.Background()))
		transport.CloseIdleConnections()
		for _, secret := range []string{testkit.Canary, signature} {
			assert.NotContains(t, q.log.String(), secret)
		}
	})
	return q
}

// of says what is pulled, and who may know the credentials for it.
func (q *quirk) of(name string, img *pullthroughtest.Image, told ...string) *quirk {
	q.name, q.img, q.told = name, img, told
	return q
}

// requests are lines of the hosts' logs, with names for the image's digests.
type requests map[string][]string

func (q *quirk) requests() requests {
	names := []string{q.img.Digest.String(), "MANIFEST", q.img.Config.Digest.String(), "CONFIG"}
	for _, layer := range q.img.Layers {
		names = append(names, layer.Digest.String(), "LAYER")
	}
	short := strings.NewReplacer(names...)
	all := requests{}
	for name, up := range q.hosts {
		for _, line := range up.Log() {
			all[name] = append(all[name], short.Replace(line))
		}
	}
	return all
}

// pullTwice pulls all of the image by tag: cold, for exactly the requests in
// want, and warm, for none.
func (q *quirk) pullTwice(t *testing.T, tag string, want requests) {
	t.Helper()
	q.Pull(t, q.name, tag, q.img)
	q.Settled(t)
	assert.Equal(t, want, q.requests())
	q.checkSecrets(t)
	q.forget()
	q.Pull(t, q.name, tag, q.img)
	assert.Empty(t, q.requests(), "what is stored is not asked for")
}

func (q *quirk) forget() {
	for _, up := range q.hosts {
		up.Reset()
	}
}

// tokenQuery is what the token server was asked for.
func tokenQuery(t *testing.T, up *pullthroughtest.Upstream, path string) url.Values {
	t.Helper()
	i := slices.IndexFunc(up.Requests(), func(r pullthroughtest.Request) bool { return r.Path == path })
	require.GreaterOrEqual(t, i, 0, "nobody asked for a token")
	return testkit.MustURL(t, "?"+up.Requests()[i].Query).Query()
}

// refused pulls tag, which must fail as kind and tell no secret.
func (q *quirk) refused(t *testing.T, tag string, kind error) *pullthrough.Error {
	t.Helper()
	_, err := q.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(q.name), Ref: tag})
	require.ErrorIs(t, err, kind)
	e, ok := errors.AsType[*pullthrough.Error](err)
	require.True(t, ok)
	_, _, message := pullthrough.OCI(err)
	for _, secret := range []string{testkit.Canary, signature} {
		assert.NotContains(t, err.Error()+message, secret)
	}
	q.checkSecrets(t)
	_, stored := q.Mem.Manifest(t.Context(), testkit.Repo(q.name), tag)
	assert.Error(t, stored, "nothing of it is kept")
	return e
}

// checkSecrets makes sure that the credentials are where they belong and nowhere
// else, and that no other host sees a token or where we come from.
func (q *quirk) checkSecrets(t *testing.T) {
	t.Helper()
	for name, up := range q.hosts {
		assert.Equal(t, slices.Contains(q.told, name), up.Saw(testkit.Canary), "%s and the credentials", name)
		known := up == q.Up || slices.Contains(q.told, name) || slices.Contains(q.shown, name)
		for _, r := range up.Requests() {
			assert.True(t, known || r.Header.Get("Authorization") == "", "%s sees %s", name, r.Header.Get("Authorization"))
			assert.Equal(t, name, r.Host)
			assert.Equal(t, "identity", r.Header.Get("Accept-Encoding"))
			assert.Empty(t, r.Header.Get("Cookie")+r.Header.Get("Referer"))
		}
	}
}

// lockedLog can be read while others still write.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// handler is a pullthroughtest.Config's.
type handler func(http.ResponseWriter, *http.Request) bool

// firstOf answers with the first handler that does.
func firstOf(all ...handler) handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return slices.ContainsFunc(all, func(h handler) bool { return h(w, r) })
	}
}

func say(w http.ResponseWriter, status int, contentType, body string) bool {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a client that is gone needs no answer
	return true
}

// ociErrors is the body of an error answer.
func ociErrors(code, message string) string {
	return `{"errors":[{"code":"` + code + `","message":"` + message + `"}]}`
}

// tokenServer is a token endpoint in a registry's own way.
type tokenServer struct {
	issuer  *pullthroughtest.Upstream // checks the credentials, makes the tokens, is on no map
	path    string
	fields  []string // of the answer; nil: all that there are
	refused int      // status for wrong credentials; 0: 401
	post    int      // status for every POST; 0: it takes identity tokens
}

func (s tokenServer) answer(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != s.path {
		return false
	}
	if r.Method == http.MethodPost && s.post != 0 {
		return say(w, s.post, "application/json", ociErrors("UNSUPPORTED", "not this way"))
	}
	inner := r.Clone(r.Context())
	inner.URL.Path = "/token"
	rec := httptest.NewRecorder()
	s.issuer.ServeHTTP(rec, inner)
	if rec.Code != http.StatusOK {
		return say(w, max(rec.Code, s.refused), "application/json", ociErrors("DENIED", "denied"))
	}
	var body map[string]any
	err := json.Unmarshal(rec.Body.Bytes(), &body)
	maps.DeleteFunc(body, func(k string, _ any) bool { return s.fields != nil && !slices.Contains(s.fields, k) })
	answer, err2 := json.Marshal(body)
	if err = errors.Join(err, err2); err != nil {
		panic(err)
	}
	return say(w, rec.Code, "application/json", string(answer))
}

// registry is one whose challenges name this server, which is at host.
func (s tokenServer) registry(t *testing.T, host, service string, more ...handler) *pullthroughtest.Upstream {
	t.Helper()
	return pullthroughtest.New(t, pullthroughtest.Config{
		TLS: true, Auth: pullthroughtest.Bearer, Issuer: s.issuer,
		Realm: "https://" + host + s.path, Service: service, Handler: firstOf(more...),
	})
}

// newIssuer makes tokens for the rule's credentials, and for nobody else.
func newIssuer(t *testing.T, change func(*pullthroughtest.Config)) *pullthroughtest.Upstream {
	t.Helper()
	c := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}
	if change != nil {
		change(&c)
	}
	return pullthroughtest.New(t, c)
}

// anonymous gives tokens to everybody; credentials are checked all the same.
func anonymous(c *pullthroughtest.Config) { c.Anonymous = true }

// newHost is a host that has nothing but what the handlers answer.
func newHost(t *testing.T, all ...handler) *pullthroughtest.Upstream {
	t.Helper()
	return pullthroughtest.New(t, pullthroughtest.Config{TLS: true, Handler: firstOf(all...)})
}

// bucket keeps the images' blobs as a store behind a registry does: it takes no
// credentials beside the signature of the redirect.
func bucket(images ...*pullthroughtest.Image) handler {
	return firstOf(func(w http.ResponseWriter, r *http.Request) bool {
		return (r.Method != http.MethodGet || !strings.Contains(r.URL.RawQuery, signature)) && sayXML(w, http.StatusForbidden, "SignatureDoesNotMatch")
	}, openBucket(images...))
}

// openBucket is one that everybody may read.
func openBucket(images ...*pullthroughtest.Image) handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			return sayXML(w, http.StatusBadRequest, "InvalidArgument") // Only one auth mechanism allowed
		}
		for _, img := range images {
			for _, b := range img.Blobs() {
				if strings.HasSuffix(r.URL.Path, b.Digest.String()) {
					http.ServeContent(w, r, "", time.Time{}, b.Open())
					return true
				}
			}
		}
		return sayXML(w, http.StatusNotFound, "NoSuchKey")
	}
}

func sayXML(w http.ResponseWriter, status int, code string) bool {
	return say(w, status, "application/xml", s3Error(code))
}

func s3Error(code string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><Error><Code>` + code + `</Code></Error>`
}

// redirectBlobs sends who may have a blob to where it is.
func redirectBlobs(up *pullthroughtest.Upstream, status int, to string) {
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 20*", Status: status, Redirect: to + "{path}?Expires=900&Signature=" + signature})
}

// refusing answers credentials that are not good, or not good enough, without
// a challenge. check is whose opinion counts.
func refusing(check *pullthroughtest.Upstream, status int, code, message string) handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			return false
		}
		rec := httptest.NewRecorder()
		check.ServeHTTP(rec, r.Clone(r.Context()))
		return rec.Code == http.StatusUnauthorized && say(w, status, "application/json", ociErrors(code, message))
	}
}
