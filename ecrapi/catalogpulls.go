package ecrapi

import (
	"context"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// maxEarly bounds the pulls whose image the Store does not have yet.
const maxEarly = 1024

// RecordPull notes the time of a pull. It fits [pullthrough.Proxy.OnEvent]. A host that has
// an OnEvent of its own calls RecordPull with every event.
//
// A manifest that was asked for and answered is a pull, whether a registry client sent a
// GET or a caller used BatchGetImage. A HEAD is none (head-counts-pull). The time is
// exact, while ECR's own may be up to a day old. If Excluded fails, the time does not
// change (pull-time).
func (c *Catalog) RecordPull(ctx context.Context, e pullthrough.Event) {
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
	stored := e.Source != pullthrough.SourceFill && e.Source != pullthrough.SourceShared
	c.notePull(imageKey{repo, digest.Digest(e.Digest)}, c.now(), stored)
}

func (c *Catalog) notePull(key imageKey, at time.Time, stored bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[key.repo]
	if r == nil && stored {
		r = c.adoptLocked(key.repo)
	}
	if r != nil {
		if img, known := r.images[key.digest]; known || stored {
			img.Digest, img.PulledAt = key.digest, at
			r.images[key.digest] = img
			return
		}
	}
	// The Store does not have the image yet, and may never get it. So all of early is
	// dropped when it is full.
	if len(c.early) >= maxEarly || c.early == nil {
		c.early = map[imageKey]time.Time{}
	}
	c.early[key] = at
}

// Excluded reports whether the principal, an ARN, is registered with
// [API.RegisterPullTimeUpdateExclusion]. It fits [Catalog.Excluded]. The session of an
// assumed role counts as its role.
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
// of arn:aws:iam::ACCOUNT:role/PATH/NAME. The first ARN does not have the path.
func isSession(session, role string) bool {
	account, rest, ok := strings.Cut(session, ":assumed-role/")
	name, _, named := strings.Cut(rest, "/")
	owner, path, isRole := strings.Cut(role, ":role/")
	return ok && named && isRole && strings.Replace(account, ":sts:", ":iam:", 1) == owner && path[strings.LastIndex(path, "/")+1:] == name
}
