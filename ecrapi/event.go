package ecrapi

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// PullThroughCacheEvent is what ECR tells EventBridge about a pull through. Its JSON is
// the event as targets get it (schema aws.ecr@ECRPullThroughCacheAction).
type PullThroughCacheEvent struct {
	Version    string                 `json:"version"`
	ID         string                 `json:"id"`
	DetailType string                 `json:"detail-type"`
	Source     string                 `json:"source"`
	Account    string                 `json:"account"`
	Time       time.Time              `json:"time"`
	Region     string                 `json:"region"`
	Resources  []string               `json:"resources"`
	Detail     PullThroughCacheDetail `json:"detail"`
}

// PullThroughCacheDetail says what was pulled through, or why the pull failed. Members
// that are "" are absent.
type PullThroughCacheDetail struct {
	RuleVersion         string `json:"rule-version"`
	SyncStatus          string `json:"sync-status"` // SUCCESS, FAILURE
	EcrRepositoryPrefix string `json:"ecr-repository-prefix"`
	RepositoryName      string `json:"repository-name"`
	UpstreamRegistryURL string `json:"upstream-registry-url"`
	ImageTag            string `json:"image-tag,omitempty"`
	ImageDigest         string `json:"image-digest,omitempty"`
	FailureCode         string `json:"failure-code,omitempty"`
	FailureReason       string `json:"failure-reason,omitempty"`
}

const (
	syncSuccess = "SUCCESS"
	syncFailure = "FAILURE" // event-failure-status: AWS does not document the value
)

// PullThroughCacheEvent turns an event of the proxy into ECR's event. It is made for
// [pullthrough.Proxy.OnEvent]. ok is false if ECR would send no event. For an image there
// is one event, for the tag or digest that was asked for, and none for the manifests and
// blobs that belong to it (event-granularity). A check of a stored tag gives an event like
// a first pull. There is none if upstream was not asked, or if no rule covers the
// repository any more (untold-refusals). Errors are those of the State.
//
// A failure has one of ECR's codes for upstreams (event-failure-codes). It has no code if
// upstream does not have the image, or if the repository could not be created.
func (a *API) PullThroughCacheEvent(ctx context.Context, e pullthrough.Event) (event PullThroughCacheEvent, ok bool, err error) {
	if !isPullThrough(e) {
		return event, false, nil
	}
	repo := e.Request.Repo
	rules, err := a.Rules(ctx, repo.Account, repo.Region)
	if err != nil {
		return event, false, err
	}
	rule, _, ok := pullthrough.Match(rules, repo.Name)
	if !ok {
		return event, false, nil // the rule was deleted meanwhile
	}
	reg := a.registry(repo.Account, repo.Region)
	event = PullThroughCacheEvent{
		Version: "0", ID: requestID(), DetailType: "ECR Pull Through Cache Action", Source: "aws.ecr",
		Account: reg.account, Time: a.now().UTC().Truncate(time.Second), Region: reg.region,
		Resources: []string{repositoryARN(reg, repo.Name)},
		Detail: PullThroughCacheDetail{
			RuleVersion: "1", SyncStatus: syncSuccess, EcrRepositoryPrefix: rule.Prefix, RepositoryName: repo.Name,
			UpstreamRegistryURL: rule.UpstreamURL, ImageDigest: e.Digest,
		},
	}
	event.Detail.name(e.Request.Ref)
	if e.Err != nil {
		event.Detail.fail(reg, e.Err)
	}
	return event, true, nil
}

// isPullThrough reports whether the proxy's event is a pull through that a client asked
// for. That is one fetch of a manifest, however many clients wait for it
// (event-granularity).
func isPullThrough(e pullthrough.Event) bool {
	return e.Kind == pullthrough.EventFetch && e.Object == pullthrough.EventManifest && !e.Part
}

// name notes the tag or the digest that was asked for.
func (d *PullThroughCacheDetail) name(ref string) {
	if ocipath.IsDigest(ref) {
		d.ImageDigest = ref
		return
	}
	d.ImageTag = ref
}

// fail notes why the pull failed, in the words of BatchGetImage.
func (d *PullThroughCacheDetail) fail(reg registry, err error) {
	if e, ok := errors.AsType[*pullthrough.Error](err); ok && e.Repo.Account == "" {
		named := *e
		named.Repo.Account = reg.account
		err = &named
	}
	exception, code, reason := pullthrough.AWS(err, "BatchGetImage")
	d.SyncStatus, d.FailureReason = syncFailure, reason
	switch {
	case strings.HasPrefix(code, "Upstream"):
		d.FailureCode = code
	case exception == "UnableToGetUpstreamImageException":
		d.FailureCode = "UpstreamAccessDenied" // the rule's secret is of no use
	}
}
