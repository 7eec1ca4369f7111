package pullthrough

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/ecr"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// namesHost reports whether the client asks for a repository of another registry, of which
// it takes us for a mirror: /v2/library/alpine/manifests/3.20?ns=docker.io, as containerd and
// BuildKit write it. Most requests have no query.
func namesHost(u *url.URL, path ocipath.Path) bool {
	return u.RawQuery != "" && path.Name != "" && strings.Join(u.Query()[hostParam], "") != ""
}

const (
	hostParam = "ns" // the parameter of a query that names the registry
	maxHost   = 260  // a host name of 253 bytes, and a port
)

// hostOf returns the host that the query names. It is "" if there are several, or if it is none.
func hostOf(u *url.URL) string {
	named := u.Query()[hostParam]
	if len(named) != 1 || len(named[0]) > maxHost || !hostname.Valid(named[0]) {
		return ""
	}
	return named[0]
}

// meant returns r and its path as the client means them, who names the registry whose
// repository it wants: see [Proxy.Mirror]. An error is for the client to read, and the host has been
// told of it.
func (p *Proxy) meant(r *http.Request, path ocipath.Path, c caller) (*http.Request, ocipath.Path, error) {
	if !namesHost(r.URL, path) {
		return r, path, nil
	}
	start := p.engine().start()
	req := Request{Repo: Repo{c.Account, c.Region, path.Name}, Ref: path.Ref, Head: r.Method == http.MethodHead, Caller: c.Caller}
	name, err := p.engine().meant(r.Context(), req.Repo, hostOf(r.URL), p.Mirror)
	if err == nil && p.Mirror {
		path.Name = name
		if bad := path.Check(); bad != nil { // the prefix may make the name too long
			err = invalid(req.Repo, path.Ref, bad)
		}
		r = renamed(r, path)
	}
	switch {
	case err == nil:
		return r, path, nil
	case isPullKind(path.Kind):
		return r, path, p.engine().answer(r.Context(), Event{Kind: path.Kind.String(), Request: req}, start, outcome{}, err)
	}
	return r, path, p.engine().explain(r.Context(), req, outcome{}, err)
}

func isPullKind(k ocipath.Kind) bool {
	return k == ocipath.Manifest || k == ocipath.Blob || k == ocipath.Referrers
}

// renamed is r as a request for path, of no other registry.
func renamed(r *http.Request, path ocipath.Path) *http.Request {
	u, query := *r.URL, r.URL.Query()
	query.Del(hostParam)
	u.Path, u.RawPath, u.RawQuery = path.String(), "", query.Encode()
	own := r.WithContext(r.Context())
	own.URL, own.RequestURI = &u, u.RequestURI()
	return own
}

// meant is the name of the repository that a client means which asks for repo and names
// host. An error is ErrNoRule where that would be another registry's.
func (c *core) meant(ctx context.Context, repo Repo, host string, mirror bool) (string, error) {
	if c.unset != nil {
		return "", c.unset
	}
	rules, err := callBeside(ctx, c.router.callbacks, "Rules", func(ctx context.Context) ([]Rule, error) {
		return c.router.askRules(ctx, repo.Account, repo.Region)
	})
	if err != nil {
		return "", err
	}
	if mirror && host == "" {
		return "", &Error{Kind: ErrInvalid, Message: "The parameter ns must be there once, and be the host of a registry, such as docker.io"}
	}
	if mirror {
		if name, ok := mirrored(rules, repo.Name, host); ok {
			return name, nil
		}
		return "", &Error{Kind: ErrNoRule, Message: "No pull through cache rule of this registry brings this repository from '" + host + "'"}
	}
	if rule, _, ok := Match(rules, repo.Name); ok && rule.Prefix == ecr.Root && !rule.isAt(host) {
		return "", &Error{Kind: ErrNoRule, Err: errors.New("the rule of ROOT is for another registry than the client names")}
	}
	return repo.Name, nil
}

// mirrored is the repository that has, by a rule, what the registry at host has under name. If
// there are several, that of the rule with the longest upstream prefix counts, then
// one that has a prefix of its own, then the first. A name that another rule owns is none, since
// it would be another registry's.
func mirrored(rules []Rule, name, host string) (repository string, ok bool) {
	best := -1
	for i := range rules {
		candidate, weight, below := rules[i].mirror(name)
		if !below || weight <= best || !rules[i].isAt(host) {
			continue
		}
		if owner, there, _ := Match(rules, candidate); there == name && owner.isAt(host) {
			repository, ok, best = candidate, true, weight
		}
	}
	return repository, ok
}

// mirror is the repository that has by the rule alone what is called name upstream, and
// how much that counts among rules of the same registry.
func (r *Rule) mirror(name string) (repository string, weight int, ok bool) {
	above := r.upstreamPrefix()
	rest := name
	if above != "" {
		if rest, ok = strings.CutPrefix(name, above+"/"); !ok {
			return "", 0, false
		}
	}
	if r.Prefix == ecr.Root {
		return rest, 2 * len(above), true
	}
	return strings.TrimSuffix(r.Prefix, "/") + "/" + rest, 2*len(above) + 1, true
}

// isAt reports whether the rule's upstream is the registry that clients call host. A registry
// below a path of a host is another one than that of the host.
func (r *Rule) isAt(host string) bool {
	u, err := r.endpoint()
	return err == nil && u.Path == "" && hostname.IsAt(u, host)
}
