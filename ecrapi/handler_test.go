package ecrapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

var allOperations = []string{
	"CreatePullThroughCacheRule", "DescribePullThroughCacheRules", "UpdatePullThroughCacheRule", "DeletePullThroughCacheRule", "ValidatePullThroughCacheRule",
	"CreateRepositoryCreationTemplate", "DescribeRepositoryCreationTemplates", "UpdateRepositoryCreationTemplate", "DeleteRepositoryCreationTemplate",
	"RegisterPullTimeUpdateExclusion", "DeregisterPullTimeUpdateExclusion", "ListPullTimeUpdateExclusions",
	"GetRegistryPolicy", "PutRegistryPolicy", "DeleteRegistryPolicy", "DescribeRegistry", "GetAccountSetting", "PutAccountSetting",
	"GetRegistryScanningConfiguration", "PutRegistryScanningConfiguration",
}

func TestUnknownTargetsAreNext(t *testing.T) {
	var got []string
	c := start(t, &ecrapi.API{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		got = append(got, r.Method+" "+r.Header.Get("X-Amz-Target")+" "+string(body))
		w.WriteHeader(http.StatusTeapot)
	})})
	targets := []string{
		"", target, target + "Nothing", target + "createPullThroughCacheRule", "CreatePullThroughCacheRule", "x" + target + "CreatePullThroughCacheRule",
		"SpencerFrontendService.DescribeRepositories", target + "CreateRepository",
	}
	for _, unknown := range targets {
		resp, _ := c.send(t, unknown, "the body")
		assert.Equal(t, http.StatusTeapot, resp.StatusCode, unknown)
		assert.Equal(t, "POST "+unknown+" the body", got[len(got)-1], "untouched")
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodHead, http.MethodDelete} {
		r, err := http.NewRequestWithContext(t.Context(), method, c.url, nil)
		require.NoError(t, err)
		r.Header.Set("X-Amz-Target", target+"DescribePullThroughCacheRules")
		resp, _, err := do(r)
		require.NoError(t, err)
		assert.Equal(t, http.StatusTeapot, resp.StatusCode, method)
	}
}

func TestUnknownTargetsWithoutNext(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, unknown := range []string{"", target, target + "Nothing", "CreatePullThroughCacheRule", "DynamoDB_20120810.ListTables"} {
		resp, body := c.send(t, unknown, "{}")
		assertException(t, resp, body, "UnknownOperationException")
	}
	resp, err := http.Get(c.url)
	require.NoError(t, err)
	assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
	assert.NoError(t, resp.Body.Close())
}

func TestGarbage(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, op := range allOperations {
		for name, body := range map[string]string{
			"no JSON": "<xml/>", "half": `{"prefix":`, "two": `{}{}`, "list": `[]`, "string": `"x"`, "number": `1`, "trailing": `{} x`,
			"deep": strings.Repeat("[", 100_000), "binary": "\x00\xff\xfe", "unquoted": `{prefix:1}`, "bool": "true",
		} {
			resp, answer := c.send(t, target+op, body)
			assertException(t, resp, answer, "SerializationException")
			assert.NotContains(t, answer, "json:", "%s %s: what is said is for people", op, name)
		}
	}
	for op, body := range map[string]string{
		"CreatePullThroughCacheRule":       `{"ecrRepositoryPrefix":1}`,
		"DescribePullThroughCacheRules":    `{"maxResults":"1"}`,
		"ListPullTimeUpdateExclusions":     `{"maxResults":1.5}`,
		"CreateRepositoryCreationTemplate": `{"appliedFor":"PULL_THROUGH_CACHE"}`,
		"UpdateRepositoryCreationTemplate": `{"encryptionConfiguration":[]}`,
		"RegisterPullTimeUpdateExclusion":  `{"principalArn":{}}`,
	} {
		resp, answer := c.send(t, target+op, body)
		assertException(t, resp, answer, "SerializationException")
		name, _, _ := strings.Cut(strings.TrimPrefix(body, `{"`), `"`)
		assert.Contains(t, messageOf(t, answer), "'"+name+"'")
	}
	resp, answer := c.send(t, target+"DescribePullThroughCacheRules", `{"maxResults":99999999999999999999}`)
	assertException(t, resp, answer, "SerializationException")
}

// counted is a body without end that counts what was read of it.
type counted struct{ n int }

func (c *counted) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	c.n += len(p)
	return len(p), nil
}

func TestBodiesAreReadThroughALimit(t *testing.T) {
	body := &counted{}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", body)
	r.Header.Set("X-Amz-Target", target+"DescribePullThroughCacheRules")
	w := httptest.NewRecorder()
	new(ecrapi.API).ServeHTTP(w, r)
	assertException(t, w.Result(), w.Body.String(), "SerializationException")
	assert.LessOrEqual(t, body.n, 4<<20)

	c := start(t, &ecrapi.API{})
	resp, answer := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", strings.Repeat("q", 2<<20)))
	assertException(t, resp, answer, "SerializationException")
}

func TestABodyThatBreaksOff(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", io.MultiReader(strings.NewReader("{"), errReader{}))
	r.Header.Set("X-Amz-Target", target+"DescribePullThroughCacheRules")
	w := httptest.NewRecorder()
	new(ecrapi.API).ServeHTTP(w, r)
	assertException(t, w.Result(), w.Body.String(), "SerializationException")
	assert.NotContains(t, w.Body.String(), "canary")
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("canary: connection reset") }

func TestMembersThatAreNullOrUnknown(t *testing.T) {
	c := start(t, &ecrapi.API{})
	want := `{"pullThroughCacheRules":[]}`
	for _, body := range []string{"", " \n", "{}", "null", `{"maxResults":null,"nextToken":null,"registryId":null,"ecrRepositoryPrefixes":null}`, `{"new":{"a":[1]}}`, `{"nextToken":""}`} {
		c.ok(t, "DescribePullThroughCacheRules", body, want)
	}
	c.ok(t, "CreatePullThroughCacheRule",
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","credentialArn":null,"customRoleArn":null,"upstreamRegistry":null,"upstreamRepositoryPrefix":null,"registryId":null,"later":1}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","createdAt":946684800,"registryId":"123456789012"}`)
}

func TestAnyPathAndContentType(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, path := range []string{"/", "/ecr", "/a/b?c=d"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+path, strings.NewReader("{}"))
		require.NoError(t, err)
		r.Header.Set("X-Amz-Target", target+"ListPullTimeUpdateExclusions")
		resp, body, err := do(r)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.JSONEq(t, `{"pullTimeUpdateExclusions":[]}`, body)
		assert.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, resp.Header.Get("X-Amzn-Requestid"))
	}
}

func TestCallersThatAreNotKnown(t *testing.T) {
	var err error
	c := start(t, &ecrapi.API{Identify: func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, err }})
	for want, e := range map[string]error{
		"UnrecognizedClientException": pullthrough.ErrUnauthorized,
		"AccessDeniedException":       &ecrapi.Error{Code: "AccessDeniedException", Message: "not you"},
		"ServerException":             errors.New("canary"),
	} {
		err = e
		for _, op := range allOperations {
			resp, body := c.send(t, target+op, "{}")
			assertException(t, resp, body, want)
			assert.NotContains(t, body, "canary")
		}
	}
}

// brokenState fails, or is slow to.
type brokenState struct{}

var errState = errors.New("canary-disk: I/O error")

func (brokenState) Load(context.Context, string, string) (ecrapi.Settings, error) {
	return ecrapi.Settings{}, errState
}

func (brokenState) Update(context.Context, string, string, func(*ecrapi.Settings) error) error {
	return errState
}

func TestAStateThatFails(t *testing.T) {
	var log bytes.Buffer
	api := &ecrapi.API{State: brokenState{}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	c := start(t, api)
	for _, op := range allOperations {
		log.Reset()
		body := object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "quay.io", "prefix", "hub", "principalArn", role, "policyText", strings.Replace(aPolicy, `"Action"`, `"Resource":"*","Action"`, 1), "name", "BLOB_MOUNTING", "value", "ENABLED")
		body = strings.TrimSuffix(body, "}") + `,"appliedFor":[]}`
		resp, answer := c.send(t, target+op, body)
		assertException(t, resp, answer, "ServerException")
		assert.NotContains(t, answer, "canary", "callers are not told")
		assert.Contains(t, log.String(), "canary-disk", "the host is")
		assert.Contains(t, log.String(), op)
	}
	_, err := api.Rules(t.Context(), "", "")
	assert.ErrorIs(t, err, errState)
	_, _, err = api.Template(t.Context(), pullthrough.Repo{Name: "a/b"})
	assert.ErrorIs(t, err, errState)
}

func TestClientErrorsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	c := start(t, &ecrapi.API{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c.fails(t, "DeletePullThroughCacheRule", object("ecrRepositoryPrefix", "hub"), "PullThroughCacheRuleNotFoundException", noSuchRule("hub"))
	assert.Empty(t, log.String())
}

func TestClientsThatLeaveAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	api := &ecrapi.API{State: brokenState{}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader("{}"))
	r.Header.Set("X-Amz-Target", target+"ListPullTimeUpdateExclusions")
	w := httptest.NewRecorder()
	api.ServeHTTP(w, r)
	assertException(t, w.Result(), w.Body.String(), "ServerException")
	assert.Empty(t, log.String())
}

func TestErrorsOfMethodsCanBeToldApart(t *testing.T) {
	api := &ecrapi.API{}
	_, err := api.DeletePullThroughCacheRule(t.Context(), pullthrough.Identity{}, ecrapi.DeletePullThroughCacheRuleInput{EcrRepositoryPrefix: new("hub")})
	assert.ErrorIs(t, err, &ecrapi.Error{Code: "PullThroughCacheRuleNotFoundException"})
	assert.NotErrorIs(t, err, &ecrapi.Error{Code: "TemplateNotFoundException"})
	assert.ErrorContains(t, err, "PullThroughCacheRuleNotFoundException: ")
	_, err = api.CreatePullThroughCacheRule(t.Context(), pullthrough.Identity{}, ecrapi.CreatePullThroughCacheRuleInput{})
	assert.ErrorIs(t, err, &ecrapi.Error{Code: "InvalidParameterException"})
}

func TestSpecialCharactersSurvive(t *testing.T) {
	c := start(t, &ecrapi.API{})
	resp, body := c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"hub","appliedFor":[],"description":"<a> & \"b\" é 日本"}`)
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	assert.Contains(t, body, `"description":"<a> & \"b\" é 日本"`, "nothing is escaped for HTML")
	resp, body = c.send(t, target+"CreatePullThroughCacheRule", "{\"ecrRepositoryPrefix\":\"hub\",\"upstreamRegistryUrl\":\"<script>\\u0000\xff\"}")
	assertException(t, resp, body, "UnsupportedUpstreamRegistryException")
}
