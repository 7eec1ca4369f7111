package fakeecr

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

// Config says what a [Server] serves. Every zero value means something; the zero
// Config is an ECR without rules, in memory.
type Config struct {
	// Account and Region name the private registry. Clients need not identify
	// themselves: every request is for this account and Region. "": 123456789012,
	// us-east-1.
	Account, Region string
	// Data is the directory that keeps images, what the API has created, and what
	// is known about images. One Server at a time may use it: a second one is an error.
	// "": memory.
	Data string
	// MaxBytes limits the images that are kept. When there is more, the images that
	// were pulled least recently go. 0: all are kept.
	MaxBytes int64
	// VerifyBlobs has each blob in Data read in full, once, when it is first asked for:
	// see [dirstore.Store.VerifyBlobs]. false: a blob is read in full only if its size is
	// not known.
	VerifyBlobs bool

	// Rules are there from the start, beside those of the API. They may name any
	// upstream that [pullthrough.Rule.Check] takes. Each hides a rule with the same
	// prefix that Data keeps. The API can change and delete them, which lasts until
	// Shutdown. nil: there are none.
	Rules []pullthrough.Rule
	// Credentials are sent to the upstreams of Rules, by Rule.Prefix. A rule that the
	// API creates under the same prefix for another upstream does not get the
	// credential, and neither does a rule with a CredentialARN. nil: upstreams are
	// asked without credentials.
	Credentials map[string]pullthrough.Credential
	// RealmHosts are token servers that may get a rule's credential, by Rule.Prefix.
	// They come on top of RealmHosts in Policy. nil: there are none.
	RealmHosts map[string][]string
	// Secrets take the place of Secrets Manager, by name: a rule whose CredentialARN
	// ends in "secret:ecr-pullthroughcache/docker-hub" has the secret of the name
	// "ecr-pullthroughcache/docker-hub". nil: no secret exists.
	Secrets map[string]pullthrough.Credential
	// Endpoints say where upstream registries really are, by host: requests for the
	// host go to the URL, whichever rule names it. docker.io, index.docker.io and
	// registry-1.docker.io are one host. "*" is every host that has no endpoint of its
	// own, unless a rule names it by URL, as in http://127.0.0.1:5001: such a rule says
	// where it is. A nil URL is none. nil: upstreams are where their rules say.
	Endpoints map[string]*url.URL

	// Transport carries the requests to upstream registries, as [pullthrough.Proxy.Transport]
	// does. nil: that of a Proxy.
	Transport http.RoundTripper
	// Fill says how much of an image a pull brings in. The zero value is
	// [pullthrough.FillLazy].
	Fill pullthrough.FillMode
	// Policy is the policy of all rules. The zero value is ECR's.
	Policy pullthrough.Policy

	// Mirror lets clients take the Server for a mirror of the upstreams of all rules, as
	// [pullthrough.Proxy.Mirror] says. false: clients name repositories of this ECR.
	Mirror bool
	// AnyUpstream lets the API make rules for any upstream that [pullthrough.Rule.Check]
	// takes, such as http://127.0.0.1:5001. false: for those that Amazon ECR takes.
	AnyUpstream bool
	// RequireLogin answers 401 at /v2/ until the client logs in, as user AWS with a password
	// of GetAuthorizationToken, which can be used for 12 hours, and until the Server ends.
	// The API itself checks no signatures. false: everybody may pull.
	RequireLogin bool

	// DebugPage says who may see the page below [PagePath]. The zero value is
	// [PageLocal].
	DebugPage PageAccess
	// Now is the clock. nil: time.Now.
	Now func() time.Time
	// Logger gets failures and, at debug level, the events that ECR would send to
	// EventBridge. nil: [slog.Default].
	Logger *slog.Logger
	// OnEvent is called as [pullthrough.Proxy.OnEvent] is, after the Server has
	// recorded the event. nil: nothing is called.
	OnEvent func(ctx context.Context, e pullthrough.Event)
}

// AnyHost is the key in Config.Endpoints for all hosts that have none of their own.
const AnyHost = "*"

var (
	accountID  = regexp.MustCompile(`^[0-9]{12}$`)
	regionName = regexp.MustCompile(`^[a-z]+(-[a-z0-9]+)+$`)
)

// complete fills in what zero values mean and refuses what cannot be used. It
// changes nothing that the caller of New holds.
func (c *Config) complete() error {
	if c.Account == "" {
		c.Account = "123456789012"
	}
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	if c.DebugPage == "" {
		c.DebugPage = PageLocal
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case !accountID.MatchString(c.Account):
		return fmt.Errorf("account %q: an account has 12 digits", c.Account)
	case !regionName.MatchString(c.Region):
		return fmt.Errorf("region %q: a Region is spelled like us-east-1", c.Region)
	case c.MaxBytes < 0:
		return fmt.Errorf("MaxBytes %d is negative", c.MaxBytes)
	case !slices.Contains([]PageAccess{PageLocal, PageAll, PageOff}, c.DebugPage):
		return fmt.Errorf("DebugPage %q is neither %s, %s nor %s", c.DebugPage, PageLocal, PageAll, PageOff)
	}
	if err := c.completeRules(); err != nil {
		return err
	}
	return c.completeEndpoints()
}

// completeRules gives all prefixes one spelling, without a slash at the end.
func (c *Config) completeRules() error {
	c.Rules = slices.Clone(c.Rules)
	now := c.Now()
	for i := range c.Rules {
		rule := &c.Rules[i]
		if err := rule.Check(); err != nil {
			return err
		}
		rule.Prefix = trimPrefix(rule.Prefix)
		if contains(c.Rules[:i], *rule) {
			return fmt.Errorf("two rules have the prefix %q", rule.Prefix)
		}
		if rule.CreatedAt.IsZero() {
			rule.CreatedAt, rule.UpdatedAt = now, now
		}
	}
	var err error
	if c.Credentials, err = ofRules(c.Rules, c.Credentials); err != nil {
		return fmt.Errorf("credential: %w", err)
	}
	if c.RealmHosts, err = ofRules(c.Rules, c.RealmHosts); err != nil {
		return fmt.Errorf("realm host: %w", err)
	}
	return nil
}

// ofRules returns values by the prefixes of rules, in their one spelling.
func ofRules[T any](rules []pullthrough.Rule, values map[string]T) (map[string]T, error) {
	out := make(map[string]T, len(values))
	for prefix, value := range values {
		if !contains(rules, pullthrough.Rule{Prefix: prefix}) {
			return nil, fmt.Errorf("no rule has the prefix %q", prefix)
		}
		out[trimPrefix(prefix)] = value
	}
	return out, nil
}

func (c *Config) completeEndpoints() error {
	out := make(map[string]*url.URL, len(c.Endpoints))
	for host, endpoint := range c.Endpoints {
		name := hostname.Canonical(host)
		switch {
		case host != AnyHost && !hostname.Valid(host):
			return fmt.Errorf("endpoint: %q is no host name", host)
		case out[name] != nil:
			return fmt.Errorf("endpoint: two are for %s", name)
		}
		out[name] = endpoint
	}
	c.Endpoints = out
	for name, endpoint := range out {
		if endpoint == nil {
			continue // as if it were not there
		}
		if err := (pullthrough.Rule{Prefix: "any", UpstreamURL: endpoint.String()}).Check(); err != nil {
			return fmt.Errorf("endpoint of %s: %w", name, err)
		}
	}
	return nil
}
