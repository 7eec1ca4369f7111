package ecr_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// awsRows are the rows of the table from what upstream does to what callers of ECR's
// JSON API read. Each is a failed pull.
var awsRows = map[string]struct {
	testkit.Failure

	image     string // BatchGetImage: a failureCode, or the exception of the whole call
	layer     string // GetDownloadUrlForLayer: "": unable
	referrers string // ListImageReferrers: "": unable
	text      string // "": a sentence of our own
}{
	"secret that cannot be used": {Failure: testkit.Failure{Refused: errors.New("canary-vault")}, image: unableImage},
	"401":                        {Failure: testkit.Failure{Fault: testkit.Status(401)}, image: "UpstreamAccessDenied"},
	"403":                        {Failure: testkit.Failure{Fault: testkit.Status(403)}, image: "UpstreamAccessDenied"},
	"wrong password":             {Failure: testkit.Failure{Password: "canary-wrong"}, image: "UpstreamAccessDenied"},
	"429":                        {Failure: testkit.Failure{Fault: testkit.Status(429, "Retry-After", "3600")}, image: "UpstreamTooManyRequests"},
	"network":                    {Failure: testkit.Failure{Down: true}, image: "UpstreamUnavailable"},
	"5xx":                        {Failure: testkit.Failure{Fault: testkit.Status(500)}, image: "UpstreamUnavailable"},
	"timeout upstream":           {Failure: testkit.Failure{Fault: testkit.Status(504)}, image: "UpstreamUnavailable"},
	"bad content":                {Failure: testkit.Failure{Fault: pullthroughtest.Fault{Flip: new(int64(20))}}, image: "UpstreamUnavailable"},
	"404":                        {Failure: testkit.Failure{Fault: testkit.Status(404)}, image: "ImageNotFound", layer: "LayersNotFoundException", text: testkit.SayNotFound},
	"no way in":                  {Failure: testkit.Failure{Refused: pullthrough.ErrDenied}, image: "UpstreamAccessDenied"},
}

const (
	unableImage     = "UnableToGetUpstreamImageException"
	unableLayer     = "UnableToGetUpstreamLayerException"
	unableReferrers = "UnableToListUpstreamImageReferrersException"
)

func TestAWSOfFailedPulls(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	for name, row := range awsRows {
		t.Run(name, func(t *testing.T) {
			w := failingWorld(t, row.Failure)
			w.Up.Push("a", "v1", img)
			row.Fault.Match = "GET /v2/a/* 20*" // not the challenge, not the token
			w.Up.Fault(row.Fault)
			if row.Down {
				w.Up.Close()
			}
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: img.Digest.String()})
			require.Error(t, err)
			exception, failureCode, message := pullthrough.AWS(err, "BatchGetImage")
			assert.Equal(t, row.image, exception+failureCode)
			assert.Equal(t, row.image == unableImage, exception != "", "an image that upstream does not give fails alone")
			assertOwnWords(t, row.text, message)

			exception, failureCode, message = pullthrough.AWS(err, "ListImageReferrers")
			assert.Equal(t, unableReferrers, exception)
			assert.Empty(t, failureCode)
			assertOwnWords(t, row.text, message)

			_, err = w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: img.Layers[0].Digest.String()})
			require.Error(t, err)
			exception, failureCode, message = pullthrough.AWS(err, "GetDownloadUrlForLayer")
			assert.Equal(t, orElse(row.layer, unableLayer), exception)
			assert.Empty(t, failureCode)
			assertOwnWords(t, "", message)
			assert.Equal(t, row.Down, len(w.Up.Log()) == 0)
			if row.Refused != nil {
				assert.Zero(t, w.Up.Count("GET /token *"), "no secret, no token: %s", w.Up.Log())
			}
		})
	}
}

// failingWorld is an upstream that asks for a token, with a rule for it.
func failingWorld(t *testing.T, f testkit.Failure) *testkit.World {
	const user, password = "canary-robot", "canary-password"
	config := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{user: password}}
	return testkit.NewWorld(t, config, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Retries: -1}
		}
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{Username: user, AccessToken: orElse(f.Password, password)}, f.Refused
		}
	})
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func assertOwnWords(t *testing.T, want, message string) {
	t.Helper()
	if want != "" {
		assert.Equal(t, want, message)
	}
	assert.NotEmpty(t, message)
	for _, word := range []string{"canary", "127.0.0.1", "http://"} {
		assert.NotContains(t, message, word)
	}
}

func TestAWSOfPullsThatUpstreamDoesNotSee(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = func(_ context.Context, _ pullthrough.Action, r pullthrough.Request) error {
			if r.Caller == "stranger" {
				return errors.New("User: stranger is not authorized to perform: ecr:BatchGetImage")
			}
			return nil
		}
	})
	known := pullthrough.Repo{Account: testkit.RegistryAccount, Name: testkit.Prefix + "/a"}
	for name, c := range map[string]struct {
		request                    pullthrough.Request
		exception, failure, layers string
		message                    string
	}{
		"no rule": {
			pullthrough.Request{Repo: pullthrough.Repo{Account: testkit.RegistryAccount, Name: "mine"}, Ref: "v1"},
			"RepositoryNotFoundException", "", "RepositoryNotFoundException", testkit.SayNoRepository("mine", testkit.RegistryAccount),
		},
		"bad name":   {pullthrough.Request{Repo: pullthrough.Repo{Name: "Mine"}, Ref: "v1"}, "InvalidParameterException", "", "InvalidParameterException", `invalid repository name "Mine"`},
		"bad tag":    {pullthrough.Request{Repo: known, Ref: "-v1"}, "", "InvalidImageTag", "InvalidParameterException", `invalid tag "-v1"`},
		"bad digest": {pullthrough.Request{Repo: known, Ref: "sha256:abc"}, "", "InvalidImageDigest", "InvalidParameterException", `invalid digest "sha256:abc"`},
		"caller who may not pull": {
			pullthrough.Request{Repo: known, Ref: "v1", Caller: "stranger"},
			"AccessDeniedException", "", "AccessDeniedException", "User: stranger is not authorized to perform: ecr:BatchGetImage",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Manifest(t.Context(), c.request)
			exception, failure, message := pullthrough.AWS(err, "BatchGetImage")
			assert.Equal(t, c.exception, exception)
			assert.Equal(t, c.failure, failure)
			assert.Equal(t, c.message, message)
			exception, failure, _ = pullthrough.AWS(err, "GetDownloadUrlForLayer")
			assert.Equal(t, c.layers, exception)
			assert.Empty(t, failure)
		})
	}
	assert.Empty(t, w.Up.Log())
}

// ECR's sentence about credentials that upstream refuses would send people to the
// wrong place when the secret cannot be read, and a refusal by upstream is none of
// the caller, whatever it says.
func TestAWSTellsRefusalsApart(t *testing.T) {
	w := failingWorld(t, testkit.Failure{Refused: errors.New("canary-vault")})
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "v1"})
	_, _, message := pullthrough.AWS(err, "BatchGetImage")
	assert.Contains(t, message, "secret")
	assert.NotEqual(t, testkit.SayDenied, message)
	_, _, message = pullthrough.OCI(err)
	assert.Equal(t, testkit.SayDenied, message, "registry clients read one sentence")

	_, failure, _ := pullthrough.AWS(&pullthrough.Error{Kind: pullthrough.ErrDenied, Host: "quay.io", Message: "no"}, "BatchGetImage")
	assert.Equal(t, "UpstreamAccessDenied", failure)
}

func TestAWSAfterShutdownAndByABrokenRule(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Rules = pullthrough.StaticRules{{Prefix: "broken", UpstreamURL: "https://u:canary@quay.io"}, {Prefix: testkit.Prefix, UpstreamURL: w.Up.URL}}
	for _, name := range []string{"broken/a", testkit.Prefix + "/a"} {
		if name != "broken/a" {
			require.NoError(t, w.Shutdown(t.Context()))
		}
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: name}, Ref: "v1"})
		for _, op := range []string{"BatchGetImage", "GetDownloadUrlForLayer", "ListImageReferrers"} {
			exception, failure, message := pullthrough.AWS(err, op)
			assert.Equal(t, "ServerException", exception, name)
			assert.Empty(t, failure)
			assertOwnWords(t, "", message)
		}
	}
	assert.Empty(t, w.Up.Log())
}

// A secret that cannot be used is trouble with the secret only where the rule says
// that refusals may be told from what is not there.
func TestAWSHidesWhatThePolicyHides(t *testing.T) {
	w := failingWorld(t, testkit.Failure{Refused: errors.New("canary-vault")})
	w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
		return pullthrough.Policy{HideDenied: true}
	}
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "v1"})
	exception, failure, message := pullthrough.AWS(err, "BatchGetImage")
	assert.Empty(t, exception)
	assert.Equal(t, "ImageNotFound", failure)
	assert.Equal(t, testkit.SayNotFound, message)
	status, code, _ := pullthrough.OCI(err)
	assert.Equal(t, 404, status)
	assert.Equal(t, "MANIFEST_UNKNOWN", code)
}
