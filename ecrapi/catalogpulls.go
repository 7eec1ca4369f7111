package ecrapi

import (
	"context"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// maxEarly bounds the pulls whose image the Store is still being given.
const maxEarly = 1024

// RecordPull notes the time of a pull, and that the Store is still to be given its
// image. It fits [pullthrough.Proxy.OnEvent]. A host that has an OnEvent of its own
// calls RecordPull there with every event, before it returns: the event of an answer
// makes reads of the repository wait, that of the fetch ends the wait.
//
// A pull is
// a manifest that was asked for and answered, be it by a registry client's GET or by
// BatchGetImage. A HEAD is none (head-counts-pull). The time is exact, ECR's own may be
// up to a day old; where nobody can tell whether the caller is excluded, it stays
// (pull-time).
func (c *Catalog) RecordPull(ctx context.Context, e pullthrough.Event) {
	c.hear(e)
	if e.Kind != pullthrough.EventManifest || e.Request.Head || e.Err != nil || e.Digest == "" {
		return
	}
	repo := e.Request.Repo
	if c.Excluded != nil && e.Request.Caller != "" {
		excluded, err := c.Excluded(ctx, repo.Account, repo.Region, e.Request.Caller)
		if err != nil {
			c.warn(ctx, "a pull was not recorded", err)
		}
		if excluded || err != nil {
			return
		}
	}
	c.pulled(imageKey{repo, digest.Digest(e.Digest)}, c.now())
}

func (c *Catalog) pulled(key imageKey, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.repos[key.repo]; r != nil {
		if img, ok := r.images[key.digest]; ok {
			img.PulledAt = at
			r.images[key.digest] = img
			return
		}
	}
	// Clients do not wait for the Store. What it never gets makes room.
	if len(c.early) >= maxEarly || c.early == nil {
		c.early = map[imageKey]time.Time{}
	}
	c.early[key] = at
}

// Excluded reports whether the principal, an ARN, is registered with
// [API.RegisterPullTimeUpdateExclusion]; it fits [Catalog.Excluded]. The session of an
// assumed role is its role.
func (a *API) Excluded(ctx context.Context, account, region, principal string) (bool, error) {
	settings, err := a.load(ctx, a.registry(account, region))
	if err != nil {
		return false, err
	}
	for _, e := range settings.Exclusions {
		if e.PrincipalArn == principal || isSession(principal, e.PrincipalArn) {
			return true, nil
		}
	}
	return false, nil
}

// isSession reports whether arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION is a session
// of arn:aws:iam::ACCOUNT:role/PATH/NAME: the former does not tell the path.
func isSession(session, role string) bool {
	account, rest, ok := strings.Cut(session, ":assumed-role/")
	name, _, named := strings.Cut(rest, "/")
	owner, path, isRole := strings.Cut(role, ":role/")
	return ok && named && isRole && strings.Replace(account, ":sts:", ":iam:", 1) == owner && path[strings.LastIndex(path, "/")+1:] == name
}
