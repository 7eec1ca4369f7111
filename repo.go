package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// mayCreate reports whether the repository is not there, as far as the Store
// says, and refuses callers who may not create it. A Store that cannot tell
// harms no pull.
func (p *Proxy) mayCreate(ctx context.Context, r Request) (absent bool, err error) {
	exists, err := p.repoExists(ctx, r.Repo)
	if exists || err != nil {
		return false, err
	}
	err = p.authorize(ctx, ActionCreate, r)
	if errors.Is(err, ErrDenied) {
		err = &Error{Kind: ErrNotFound, Err: err} // masked, as in Amazon ECR
	}
	return true, err
}

// repoExists is true also where the Store makes no difference.
func (p *Proxy) repoExists(ctx context.Context, repo Repo) (exists bool, err error) {
	creator, ok := p.Store.(RepoCreator)
	if !ok {
		return true, nil
	}
	exists, err = found(ctx, p, "Store.RepoExists", func(ctx context.Context) (bool, error) {
		return creator.RepoExists(ctx, repo)
	})
	switch {
	case err == nil:
		return exists, nil
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	}
	p.storeFailed(ctx, repo, "", err)
	return true, nil
}

// createRepo has the Store make the repository, if it is not there: upstream has
// shown the image that it is for.
func (p *Proxy) createRepo(ctx context.Context, rt *route, r Request) error {
	exists, err := p.repoExists(ctx, rt.repo)
	if exists || err != nil {
		return err
	}
	err = p.bounded(ctx, "Store.CreateRepo", func(ctx context.Context) error {
		return p.Store.(RepoCreator).CreateRepo(ctx, rt.repo, rt.rule, r)
	})
	if _, typed := errors.AsType[*Error](err); err == nil || typed {
		return err
	}
	return nameUnknown(&Error{Kind: ErrNotFound, Err: fmt.Errorf("the repository could not be created: %w", err)})
}

// placed says of what upstream is not asked for whether its repository is there,
// where the Store knows.
func (p *Proxy) placed(ctx context.Context, repo Repo, err error) error {
	e, ok := errors.AsType[*Error](err)
	if _, tells := p.Store.(RepoCreator); !ok || !tells {
		return err
	}
	switch exists, _ := p.repoExists(ctx, repo); {
	case !exists:
		return nameUnknownIf(true, err)
	case e.Kind == ErrNoRule:
		known := *e
		known.Code, known.Message = codeManifestUnknown, sayNotFound
		return &known
	}
	return err
}

// nameUnknownIf says of what was not found that its repository is not there
// either, if that is so.
func nameUnknownIf(absent bool, err error) error {
	e, ok := errors.AsType[*Error](err)
	switch {
	case absent && err == nil:
		return nameUnknown(&Error{Kind: ErrNotFound})
	case !absent || !ok || e.Kind != ErrNotFound:
		return err
	}
	return nameUnknown(e)
}

// nameUnknown is e with the code and sentence for a repository that is not there.
func nameUnknown(e *Error) *Error {
	named := *e
	named.Code, named.Message = codeNameUnknown, ""
	return &named
}

// mayAsk refuses what upstream need not be asked for.
func (p *Proxy) mayAsk(ctx context.Context, rt *route, ref string) error {
	key := rt.key(ref)
	if since, ok := p.state().missing.Get(key); ok && !expired(rt.policy.NotFoundTTL, defaultNotFoundTTL, since, p.now()) {
		e := rt.error(ErrNotFound, errors.New("it was not there a moment ago"))
		e.Status = http.StatusNotFound
		return e
	}
	if rt.policy.DigestAfterTag && ocipath.IsDigest(ref) {
		if _, ok := p.state().children.Get(key); !ok && !p.isStoredChild(ctx, rt, ref) {
			return rt.error(ErrNotFound, errors.New("Policy.DigestAfterTag: no tag of the repository was pulled that leads to this digest"))
		}
	}
	return nil
}

// isStoredChild reports whether an index that a tag of the repository names refers
// to the digest, where the Store lists tags. It is for after a restart, and looks at
// the tags of a repository every 10 s at most.
func (p *Proxy) isStoredChild(ctx context.Context, rt *route, ref string) bool {
	lister, ok := p.Store.(TagLister)
	repo := rt.key("")
	if at, _ := p.state().listed.Get(repo); !ok || p.now().Sub(at).Abs() < defaultNotFoundTTL {
		return false
	}
	tags, err := found(ctx, p, "Store.Tags", func(ctx context.Context) ([]string, error) {
		return lister.Tags(ctx, rt.repo)
	})
	if err != nil {
		return false
	}
	for _, tag := range tags[:min(len(tags), maxListed)] {
		if m := p.lookUpManifest(ctx, rt.repo, tag); m != nil {
			if info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content); err == nil {
				p.remember(rt, info)
			}
		}
	}
	p.state().listed.Put(repo, p.now())
	_, ok = p.state().children.Get(rt.key(ref))
	return ok
}

// noteMissing remembers that upstream does not have ref.
func (p *Proxy) noteMissing(rt *route, ref string, err error) {
	e, ok := errors.AsType[*Error](err)
	if ok && e.Kind == ErrNotFound && e.Status == http.StatusNotFound && rt.policy.NotFoundTTL >= 0 {
		p.state().missing.Put(rt.key(ref), p.now())
	}
}
