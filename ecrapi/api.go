// Package ecrapi is the control plane of Amazon ECR: pull through cache rules, repository
// creation templates, pull time update exclusions, repositories, images and tokens, as
// the JSON API that AWS SDKs, the AWS CLI and Terraform speak, and as Go methods.
// [Operations] lists the operations. Pushes and scans are not among them: [API.Next] gets
// these.
//
// An [API] is mounted at POST / and gives a [pullthrough.Proxy] its rules and
// credentials:
//
//	api := &ecrapi.API{Account: "123456789012", Region: "us-east-1"}
//	proxy := &pullthrough.Proxy{
//		Store:       memstore.New(),
//		Rules:       api,
//		Credentials: api.Credentials, // with API.Secrets
//	}
//	http.Handle("/v2/", proxy)
//	http.Handle("/", api)
//
// The operations on repositories and images need a [Catalog] around the Store, and
// [API.Images]. Package fakeecr shows all of it put together.
//
// Fields, absent members and errors are ECR's. Where nobody outside of AWS knows how
// ECR behaves, this package has a constant or an option, with a comment that says so.
package ecrapi

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// API is ECR's control plane for pull through cache. It is a struct to fill in:
// the zero value serves one account in one Region from memory. Fields must not
// change after first use. An API is safe for concurrent use and must not be copied
// after first use. It starts nothing. It does no I/O except through the functions in
// its fields.
//
// Each operation is a method of the same name. [API.ServeHTTP] calls these methods. An
// error that callers may read is an [*Error]. Every other error is a failure of the
// host's functions: callers of the JSON API read ServerException for it. A method may
// keep what it is given, and may share what it returns. Neither must be changed.
type API struct {
	// State keeps the settings. nil: they are kept in memory.
	State State
	// Identify says who sends a request, to which account and Region. An error that
	// Is [pullthrough.ErrUnauthorized] is answered UnrecognizedClientException, an
	// [*Error] as it says. nil: the zero Identity.
	Identify func(*http.Request) (pullthrough.Identity, error)
	// Account and Region are used for requests, and for calls of Rules, Template and
	// Credentials, that do not name them. "": 123456789012, us-east-1.
	Account, Region string
	// Secrets returns the string of a secret. arn names the secret with or without the
	// six characters that Secrets Manager puts at its end. Secrets returns "" for a
	// secret that has no version yet. Its errors are [ErrSecretNotFound],
	// [ErrSecretAccess] and [ErrSecretDecrypt]. nil: every secret exists, and its
	// content is unknown.
	Secrets func(ctx context.Context, account, region, arn string) (string, error)
	// Validate reaches the rule's upstream registry and authenticates, for
	// ValidatePullThroughCacheRule. repo has no name. The error is one of the
	// secret errors or of the pullthrough package. nil: a rule is valid if it has no
	// secret, or if its secret can be read and is well-formed.
	Validate func(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule) error
	// AllowUpstream reports whether a rule may be created for an upstream that Amazon ECR
	// does not take, such as http://127.0.0.1:5001 in a test harness. Such a rule need pass
	// [pullthrough.Rule.Check] only, and may have a secret. nil: only the upstreams that ECR
	// takes.
	AllowUpstream func(url string) bool
	// CheckRegion refuses rules in Regions that have no pull through cache
	// (region-error). false: rules are accepted in all Regions.
	CheckRegion bool

	// Images makes this API answer the operations on repositories and images. nil: Next
	// gets these requests.
	Images *Images

	// ToNext are operations that Next gets although the API knows them, such as
	// "GetAuthorizationToken". Identify is not asked for them. nil: none.
	ToNext []string
	// Next gets the requests for all other operations, untouched, and those that name
	// repositories of which none exists here and none is covered by a rule: they may be the
	// host's own. CreateRepository creates one here, unless ToNext names it. nil: they are
	// answered with UnknownOperationException. See also [API.TryServe].
	Next http.Handler
	// Logger is told when a function of the host fails. nil: slog.Default.
	Logger *slog.Logger
	// Now is the clock for the times of creation and of updates. nil: time.Now.
	Now func() time.Time

	memory MemState
}

// Rules returns the rules of an account in a Region, in no particular order. It makes
// an API a [pullthrough.RuleSource].
func (a *API) Rules(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
	settings, err := a.load(ctx, a.registry(account, region))
	return settings.Rules, err
}

// registry is the account and the Region of a private registry.
type registry struct{ account, region string }

const (
	defaultAccount = "123456789012"
	defaultRegion  = "us-east-1"
)

// registry fills in the account and the Region if a request does not name them.
func (a *API) registry(account, region string) registry {
	return registry{or(account, a.Account, defaultAccount), or(region, a.Region, defaultRegion)}
}

// or returns the first value that is not "".
func or(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func (a *API) load(ctx context.Context, reg registry) (Settings, error) {
	return a.state().Load(ctx, reg.account, reg.region)
}

func (a *API) update(ctx context.Context, reg registry, change func(*Settings) error) error {
	return a.state().Update(ctx, reg.account, reg.region, change)
}

func (a *API) state() State {
	if a.State != nil {
		return a.State
	}
	return &a.memory
}

func (a *API) now() time.Time {
	if a.Now != nil {
		return a.Now()
	}
	return time.Now()
}
