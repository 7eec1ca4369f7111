package testkit

import (
	"context"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Canary is the one good secret. Only the upstream may see it.
const Canary = "canary-secret"

// Users are an upstream's, with the good secret.
var Users = map[string]string{"me": Canary}

// WithSecret gives every rule the one good credential, and counts how often it
// was asked for.
func WithSecret(asked *atomic.Int32) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			if asked != nil {
				asked.Add(1)
			}
			return pullthrough.Credential{Username: "me", AccessToken: Canary}, nil
		}
	}
}

// WithPolicy gives every rule the policy.
func WithPolicy(pol pullthrough.Policy) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return pol }
	}
}

// Image returns an image that differs from those of other seeds.
func Image(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed})
}

// OneTry keeps failures short where a test is not about trying again.
func OneTry(p *pullthrough.Proxy) {
	p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
		return pullthrough.Policy{Retries: -1}
	}
}

// Account is an account in a Region, for rules that belong to one.
var Account = pullthrough.Repo{Account: "123456789012", Region: "us-east-1"}

// EveryPull has every tag checked by each pull.
func EveryPull(p *pullthrough.Proxy) {
	p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
		return pullthrough.Policy{TagTTL: pullthrough.EveryPull}
	}
}

// LocalManifest is one that the host pushed itself: never checked, no origin.
func LocalManifest(tag string) *pullthrough.Manifest {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 99})
	return &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))},
		Content:    img.Content,
		Tag:        tag,
	}
}

// Port is where the upstream listens.
func Port(u *pullthroughtest.Upstream) string { return u.Host()[len("127.0.0.1:"):] }

// Blobs matches upstream's answers to GET of blobs of the repository a.
const Blobs = "GET /v2/a/blobs/*"

// WithCredential gives every rule c.
func WithCredential(c pullthrough.Credential) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return c, nil
		}
	}
}
