package ecrapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var (
	_ http.Handler           = (*ecrapi.API)(nil)
	_ pullthrough.RuleSource = (*ecrapi.API)(nil)
	_ ecrapi.State           = (*ecrapi.MemState)(nil)
)

const (
	target  = "AmazonEC2ContainerRegistry_V20150921."
	account = "123456789012"
	region  = "us-east-1"
	secret  = "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub-AbCdEf"
	secret2 = "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/other"
	role    = "arn:aws:iam::123456789012:role/pull"
)

// Policies that ECR takes.
const (
	aPolicy    = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"ecr:BatchGetImage"}]}`
	aLifecycle = `{"rules":[{"rulePriority":1,"description":"old ones","selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":14},"action":{"type":"expire"}}]}`
)

// quote is text as JSON.
func quote(text string) string { return quoted([]byte(text)) }

// epoch is 946684800 on the wire, as in AWS's own examples.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// client speaks JSON 1.1 to an API.
type client struct {
	api *ecrapi.API
	url string
	now time.Time
}

// start serves the API, whose clock is the client's.
func start(t *testing.T, api *ecrapi.API) *client {
	t.Helper()
	c := &client{api: api, now: epoch}
	api.Now = func() time.Time { return c.now }
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// send posts a body as it is. headers are names and values in turn.
func (c *client) send(t *testing.T, target, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	resp, answer, err := c.post(t.Context(), target, body, headers...)
	require.NoError(t, err)
	return resp, answer
}

// post is send for goroutines of the test's own.
func (c *client) post(ctx context.Context, target, body string, headers ...string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/", strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", target)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return do(r)
}

func do(r *http.Request) (*http.Response, string, error) {
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, "", err
	}
	content, err := io.ReadAll(resp.Body)
	return resp, string(content), errors.Join(err, resp.Body.Close())
}

// ok sends a request and wants exactly this answer.
func (c *client) ok(t *testing.T, op, body, want string, headers ...string) {
	t.Helper()
	resp, got := c.send(t, target+op, body, headers...)
	assert.Equal(t, http.StatusOK, resp.StatusCode, got)
	assert.Equal(t, "application/x-amz-json-1.1", resp.Header.Get("Content-Type"))
	assert.JSONEq(t, want, got)
}

// fails sends a request and wants exactly this exception.
func (c *client) fails(t *testing.T, op, body, code, message string, headers ...string) {
	t.Helper()
	resp, got := c.send(t, target+op, body, headers...)
	assertException(t, resp, got, code)
	assert.Equal(t, message, messageOf(t, got))
}

func assertException(t *testing.T, resp *http.Response, body, code string) {
	t.Helper()
	status := http.StatusBadRequest
	if code == "ServerException" {
		status = http.StatusInternalServerError
	}
	assert.Equal(t, status, resp.StatusCode, body)
	assert.Equal(t, "application/x-amz-json-1.1", resp.Header.Get("Content-Type"))
	members := parse(t, body)
	assert.Equal(t, code, members["__type"])
	assert.NotEmpty(t, members["message"])
	assert.Len(t, members, 2, "no more than __type and message")
}

func messageOf(t *testing.T, body string) string {
	t.Helper()
	message, _ := parse(t, body)["message"].(string)
	return message
}

func parse(t *testing.T, body string) (members map[string]any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(body), &members), body)
	return members
}

// create makes a rule for each prefix.
func (c *client) create(t *testing.T, prefixes ...string) {
	t.Helper()
	for _, prefix := range prefixes {
		resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", prefix, "upstreamRegistryUrl", "quay.io"))
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
	}
}

// object is a JSON object of strings: names and values in turn.
func object(members ...string) string {
	o := map[string]string{}
	for i := 0; i < len(members); i += 2 {
		o[members[i]] = members[i+1]
	}
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func constraint(at, text string) string {
	return "Invalid parameter at '" + at + "' failed to satisfy constraint: '" + text + "'"
}

const (
	mustNotBeNull = "Member must not be null"
	prefixPattern = `Member must satisfy regular expression pattern: ` +
		`^([a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\/?|ROOT)$`
)

func noSuchRule(prefix string) string {
	return "The pull through cache rule with repository prefix '" + prefix + "' does not exist in the registry with id '" + account + "'"
}
