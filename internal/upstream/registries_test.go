package upstream_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/internal/transcript"
)

// quirks are registries as they are, each under its real name. What they say is in
// testdata/registries.
var quirks = []row{
	{
		"Q-dockerhub", "is Docker Hub, by any of its names",
		"registry-1.docker.io is asked, for names as they are, without `library/` (but see `Policy.Library`); the credentials go to auth.docker.io alone", dockerHub.run,
	},
	{
		"Q-dockerhub-429", "is Docker Hub and limits the rate of pulls",
		"a first pull is tried 4 times, or refused at once with a Retry-After over 10 s; a stored tag is served after one HEAD", dockerHubLimits.run,
	},
	{
		"Q-ghcr", "is GHCR, which refuses a token for another scope, and any expired one, with 403",
		"the token is for the image's own repository; an expired one is refused, or gone without if the policy says so", ghcr.run,
	},
	{
		"Q-artifact-registry", "is Artifact Registry, whose token server knows no POST, or sends to a login page",
		"an identity token gives way to the password; a login page is an error that names the host", artifactRegistry.run,
	},
	{
		"Q-ecr", "is a private ECR registry, which answers 403 to an expired password, and has its blobs in S3",
		"the credentials are asked for anew, once, and never reach S3", privateECR.run,
	},
	{
		"Q-ecr-public", "is ECR Public, which answers 400 to an expired token and 401 to every HEAD of a blob",
		"one new token, with the scope `aws`; blobs are never asked for by HEAD", publicECR.run,
	},
	{
		"Q-gallery", "is gallery.ecr.aws, a web page for every path",
		"refused: nothing of it is stored or served", gallery.run,
	},
	{
		"Q-acr", "is Azure Container Registry",
		"an identity token goes by POST, a refresh token as the password of the user with the null GUID by GET", acr.run,
	},
	{
		"Q-quay", "is Quay, which wants no token for what is public, and answers 502 now and then",
		"tried again; the credentials are not sent before it asks for them, nor to its CDN", quay.run,
	},
	{
		"Q-gitlab", "is GitLab, with its token server on gitlab.com and tokens of unknown lifetime",
		"the credentials go to gitlab.com, or to the host that the policy names; a token is used for less than a minute", gitLab.run,
	},
	{
		"Q-k8s", "is registry.k8s.io, which redirects to a registry that wants a token, and to S3, which answers 400 to a resume",
		"an anonymous token there, never the rule's credentials; a blob goes on, or begins anew, from registry.k8s.io", kubernetes.run,
	},
	{
		"Q-harbor", "is Harbor: what is missing is UNKNOWN, and HEAD of a blob 404",
		"missing is 404; the size of a blob comes from GET", harbor.run,
	},
	{
		"Q-jfrog", "is JFrog, whose token server answers every POST with 401",
		"an identity token gives way to the password, once; without one the pull is refused", artifactory.run,
	},
	{
		"Q-nvcr", "is NVIDIA's, whose challenge names no service, and for an expired token another host",
		"the credentials, for the user `$oauthtoken`, go to nvcr.io/proxy_auth alone", nvcr.run,
	},
	{
		"Q-redhat", "is Red Hat's: manifests typed text/plain, layers labelled gzip-encoded, what is missing is UNKNOWN",
		"the manifest's own mediaType counts, and bytes are taken as they come; missing is 404", redHat.run,
	},
	{
		"Q-nexus", "is Nexus, which writes BASIC",
		"the scheme is read in any case", nexus.run,
	},
	{
		"Q-ghes", "is GitHub Enterprise Server, which answers 405 to HEAD of a manifest",
		"the check of a tag is a GET", ghes.run,
	},
}

func TestRegistries(t *testing.T) { testkit.RunRows(t, quirks) }

// Whatever a transcript has is asked for in some story, and it says where it comes from.
func TestTranscriptsAreInUse(t *testing.T) {
	played := map[string]bool{}
	for _, v := range []visits{
		dockerHub, dockerHubLimits, ghcr, artifactRegistry, privateECR, publicECR, gallery, acr, quay, gitLab, kubernetes, harbor, artifactory, nvcr, redHat, nexus, ghes,
	} {
		for _, visit := range v.all {
			for _, step := range visit.story {
				for section := range strings.SplitSeq(step.sections, ", ") {
					played[transcriptFile(v.file)+" "+section] = true
				}
			}
		}
	}
	files, err := filepath.Glob(transcriptFile("*"))
	require.NoError(t, err)
	for _, file := range files {
		sections, err := transcript.Read(file)
		require.NoError(t, err)
		for _, s := range sections {
			assert.True(t, played[file+" "+s.Name], "%s: %q is played nowhere", file, s.Name)
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Regexp(t, `^# .*\n(# .*\n)*# Source: `, string(text), file)
	}
}

func transcriptFile(name string) string {
	return filepath.Join("..", "..", "testdata", "registries", name+".txt")
}

// The credentials of rules.
var (
	anybody      = pullthrough.Credential{}
	user         = pullthrough.Credential{Username: "me", AccessToken: registryPassword}
	userOrToken  = pullthrough.Credential{Username: "me", AccessToken: registryPassword, IdentityToken: registryIdentity}
	identityOnly = pullthrough.Credential{IdentityToken: registryIdentity}
	nullGUID     = "00000000-0000-0000-0000-000000000000"
	apiKey       = pullthrough.Credential{Username: "$oauthtoken", AccessToken: registryPassword}
)

var dockerHub = visits{file: "docker.io", all: []visit{
	{"by its registry's name", "registry-1.docker.io", user, dockerTypes, story{
		pulls("library/alpine:3.20", "challenge, token, manifest, blobs"),
	}},
	{"by its own name", "docker.io", user, dockerTypes, story{
		pulls("library/alpine:3.20", "challenge, token, manifest, blobs"),
	}},
	{"by several clients at a time", "docker.io", user, nil, story{
		pullsTogether("library/alpine:3.20", "challenge, token, manifest, blobs"),
	}},
	{"its token server belongs to no other registry", "registry.example.com", user, nil, story{
		fails("library/alpine:3.20", "another registry with this token server", failed{kind: pullthrough.ErrDenied, says: "auth.docker.io"}),
	}},
	{"a name of one part is asked for as it is", "registry-1.docker.io", user, nil, story{
		fails("alpine:3.20", "an image that is not there", failed{kind: pullthrough.ErrDenied, status: 401}),
	}},
}}

var dockerHubLimits = visits{file: "docker.io", all: []visit{
	{"passes", "docker.io", user, nil, story{
		pulls("library/alpine:3.20", "challenge, token, too many pulls, too many pulls, manifest, blobs"),
	}},
	{"does not pass", "docker.io", user, nil, story{
		fails("library/alpine:3.20", "challenge, token, too many pulls, too many pulls, too many pulls, too many pulls",
			failed{kind: pullthrough.ErrRateLimited, status: 429, oci: "429 TOOMANYREQUESTS", silent: "HAP429"}),
	}},
	{"says for how long", "docker.io", user, nil, story{
		fails("library/alpine:3.20", "challenge, token, too many requests",
			failed{kind: pullthrough.ErrRateLimited, status: 429, oci: "429 TOOMANYREQUESTS", silent: "HAP429", retryAfter: time.Minute, atOnce: true}),
		passes(time.Minute),
		pulls("library/alpine:3.20", "manifest, blobs"),
	}},
	// HEAD is what the limit on pulls does not count.
	{"answers the check of a stored tag", "docker.io", user, underPolicy(pullthrough.Policy{TagTTL: pullthrough.EveryPull}), story{
		pullsOnce("library/alpine:3.20", "challenge, token, manifest, blobs"),
		checks("library/alpine:3.20", "too many requests to a check", pullthrough.SourceStale),
	}},
}}

var ghcr = visits{file: "ghcr.io", all: []visit{
	{"anonymous", "ghcr.io", anybody, nil, story{pulls("org/app:1", "challenge, token for anybody, image")}},
	{"with a token of the user's", "ghcr.io", user, nil, story{pulls("org/app:1", "challenge, token, image")}},
	{"with an expired token of the user's", "ghcr.io", user, nil, story{
		fails("org/app:1", "challenge, user's token has expired", failed{kind: pullthrough.ErrDenied, status: 403}),
	}},
	{"with an expired one that may be gone without", "ghcr.io", user, underPolicy(pullthrough.Policy{AnonymousFallback: true}), story{
		pulls("org/app:1", "challenge, user's token has expired, token for anybody, image"),
		step{"", func(t *testing.T, g *guest) { assert.True(t, g.anonymous(), "somebody should notice") }},
	}},
}}

var artifactRegistry = visits{file: "artifact-registry", all: []visit{
	{"with a password", "us-docker.pkg.dev", user, nil, story{pulls("project/images/app:1", "challenge, token, image")}},
	{"with an identity token", "us-docker.pkg.dev", userOrToken, nil, story{pulls("project/images/app:1", "challenge, no POST, token, image")}},
	{"a login on another host", "us-docker.pkg.dev", user, nil, story{
		fails("project/images/app:1", "challenge, login on another host", failed{kind: pullthrough.ErrUnavailable, host: "us-docker.pkg.dev"}),
	}},
	{"a login on the host itself", "us-docker.pkg.dev", user, nil, story{
		fails("project/images/app:1", "challenge, login on the host itself", failed{kind: pullthrough.ErrUnavailable, host: "us-docker.pkg.dev", says: "text/html"}),
	}},
}}

const ecrHost = "123456789012.dkr.ecr.us-east-1.amazonaws.com"

var privateECR = visits{file: "ecr", all: []visit{
	{"an expired password is answered 403", ecrHost, anybody, awsPasswords(false), story{
		pulls("app:1", "challenge, image"),
		passes(12 * time.Hour), another(2),
		pulls("app:2", "password is refused, image of the next password"),
	}},
	{"one that says when it expires", ecrHost, anybody, awsPasswords(true), story{
		pulls("app:1", "challenge, image"),
		passes(12 * time.Hour), another(2),
		pulls("app:2", "image of the next password"),
	}},
	{"a new password is answered 403 too", ecrHost, anybody, awsPasswords(false), story{
		// A second guess could lock the account.
		fails("app:1", "challenge, password is refused", failed{kind: pullthrough.ErrDenied, status: 403}),
	}},
}}

var publicECR = visits{file: "public.ecr.aws", all: []visit{
	{"an expired token is answered 400", "public.ecr.aws", anybody, nil, story{
		pulls("docker/library/alpine:1", "challenge, token, manifest, blobs"),
		another(2),
		pulls("docker/library/alpine:2", "token is refused, token, manifest, blobs"),
	}},
	{"400 to a new token is final", "public.ecr.aws", anybody, nil, story{
		fails("docker/library/alpine:1", "challenge, token, token is refused", failed{kind: pullthrough.ErrUnavailable, status: 400}),
		fails("docker/library/other:1", "token, token is refused", failed{kind: pullthrough.ErrUnavailable, status: 400}),
	}},
	{"the size of a blob is known without HEAD", "public.ecr.aws", anybody, nil, story{
		sizes("docker/library/alpine:1", "size of a layer"),
	}},
}}

// The website, which many take for the registry.
var gallery = visits{file: "gallery.ecr.aws", all: []visit{
	{"a tag", "gallery.ecr.aws", anybody, nil, story{
		fails("docker/library/alpine:1", "page for a tag", failed{kind: pullthrough.ErrUnavailable, host: "gallery.ecr.aws", says: "text/html"}),
	}},
	{"a digest", "gallery.ecr.aws", anybody, nil, story{
		fails("docker/library/alpine@", "page for a digest, page for a digest", failed{kind: pullthrough.ErrDigest}),
	}},
	// A page is no reason to try again, but once.
	{"a layer", "gallery.ecr.aws", anybody, nil, story{
		breaksBlob("docker/library/alpine:1", "page for a layer, page for a layer"),
	}},
}}

var acr = visits{file: "acr", all: []visit{
	{"with an identity token", "myregistry.azurecr.io", pullthrough.Credential{Username: nullGUID, IdentityToken: registryIdentity}, nil, story{
		pulls("app:1", "challenge, token by POST, image"),
	}},
	// The user with the null GUID has no password, so there is nothing else to try.
	{"with an identity token that has expired", "myregistry.azurecr.io", pullthrough.Credential{Username: nullGUID, IdentityToken: registryIdentity}, nil, story{
		fails("app:1", "challenge, refresh token has expired", failed{kind: pullthrough.ErrDenied, status: 401}),
	}},
	{"with a password that is a refresh token", "myregistry.azurecr.io", pullthrough.Credential{Username: nullGUID, AccessToken: registryPassword}, nil, story{
		pulls("app:1", "challenge, token by GET, image"),
	}},
}}

var quay = visits{file: "quay.io", all: []visit{
	{"public and private", "quay.io", user, nil, story{
		pulls("prometheus/busybox:latest", "bad gateway for the manifest, bad gateway for the manifest, public manifest, bad gateway for the config, public blobs"),
		another(2),
		pulls("org/app:1", "challenge, token, private image"),
	}},
}}

var gitLab = visits{file: "gitlab", all: []visit{
	// Its tokens live for 5 minutes, of which its answers say nothing, so that they are good for one.
	{"gitlab.com", "registry.gitlab.com", user, nil, story{
		pulls("group/project/app:1", "challenge, token, image"),
		passes(40 * time.Second), another(2),
		pulls("group/project/app:2", "image"),
		passes(20 * time.Second), another(3),
		pulls("group/project/app:3", "token, image"),
	}},
	{"self-managed", "registry.example.com", user, nil, story{
		fails("group/app:1", "self-managed challenge", failed{kind: pullthrough.ErrDenied, says: "gitlab.example.com"}),
	}},
	{"self-managed, named by the policy", "registry.example.com", user, underPolicy(pullthrough.Policy{RealmHosts: []string{"gitlab.example.com"}}), story{
		pulls("group/app:1", "self-managed challenge, self-managed image"),
	}},
}}

var kubernetes = visits{file: "registry.k8s.io", all: []visit{
	{"redirects to a registry", "registry.k8s.io", user, nil, story{
		pulls("pause:3.10", "manifest, config, way to the layer, layer"),
	}},
	{"a layer breaks off", "registry.k8s.io", user, bigLayer, story{
		pullsBlob("pause:3.10", "way to the layer, layer breaks off, way to the layer, resume"),
	}},
	{"a resume is answered 400", "registry.k8s.io", user, bigLayer, story{
		pullsBlob("pause:3.10", "way to the layer, layer breaks off, way to the layer, resume is answered 400, way to the layer, layer"),
	}},
}}

var harbor = visits{file: "harbor", all: []visit{
	{"what is there, and what is not", "demo.goharbor.io", user, nil, story{
		pulls("library/app:1", "challenge, token, image"),
		another(2),
		sizes("library/app:1", "size of a layer that is not cached"),
		misses("library/app:gone", "tag is missing", "artifact library/app:gone not found"),
	}},
}}

var artifactory = visits{file: "artifactory", all: []visit{
	{"with a password", "example.jfrog.io", user, nil, story{pulls("docker-local/app:1", "challenge, token, image")}},
	{"with an identity token and a password", "example.jfrog.io", userOrToken, nil, story{
		pulls("docker-local/app:1", "challenge, POST is refused, token, image"),
	}},
	{"with an identity token alone", "example.jfrog.io", identityOnly, nil, story{
		fails("docker-local/app:1", "challenge, POST is refused", failed{kind: pullthrough.ErrDenied, status: 401}),
	}},
}}

var nvcr = visits{file: "nvcr.io", all: []visit{
	{"with an API key", "nvcr.io", apiKey, nil, story{pulls("nvidia/cuda:1", "challenge, token, image")}},
	{"anonymous", "nvcr.io", anybody, nil, story{pulls("nvidia/cuda:1", "challenge, token for anybody, image")}},
	{"a key that is not good", "nvcr.io", apiKey, nil, story{
		fails("nvidia/cuda:1", "challenge, key is refused", failed{kind: pullthrough.ErrDenied, status: 401}),
	}},
	{"a token is renewed where the first one came from", "nvcr.io", apiKey, nil, story{
		pulls("nvidia/cuda:1", "challenge, token, image"),
		passes(time.Hour), another(2),
		pulls("nvidia/cuda:2", "token, image"),
	}},
	{"one that ends early", "nvcr.io", apiKey, nil, story{
		pulls("nvidia/cuda:1", "challenge, token, image"),
		another(2),
		fails("nvidia/cuda:2", "challenge for another host", failed{kind: pullthrough.ErrDenied, says: "authn.nvidia.com"}),
		pulls("nvidia/cuda:2", "challenge, token, image"),
	}},
}}

var redHat = visits{file: "redhat", all: []visit{
	{"Docker's media types", "registry.redhat.io", user, dockerTypes, story{
		pulls("ubi9/ubi:1", "challenge, token, image"),
		misses("ubi9/ubi:gone", "tag is missing", "Not Found"),
	}},
	{"OCI's media types", "registry.redhat.io", user, nil, story{
		pulls("ubi9/ubi:1", "challenge, token, image"),
		misses("ubi9/ubi:gone", "tag is missing", "Not Found"),
	}},
}}

var nexus = visits{file: "nexus", all: []visit{
	{"pull", "nexus.example.com", user, nil, story{pulls("app:1", "challenge, image")}},
}}

var ghes = visits{file: "ghes", all: []visit{
	{"a tag that is due", "containers.github.example.com", user, nil, story{
		pulls("org/app:1", "challenge, token, manifest, blobs"),
		passes(24 * time.Hour),
		checks("org/app:1", "token, no HEAD, manifest", pullthrough.SourceFill),
		passes(24 * time.Hour), another(2),
		checks("org/app:1", "token, no HEAD, manifest", pullthrough.SourceFill),
	}},
}}

func dockerTypes(g *guest) { g.options.Docker = true }

func bigLayer(g *guest) { g.options.LayerSize = 3 << 20 }

func underPolicy(p pullthrough.Policy) func(*guest) {
	return func(g *guest) { g.policy = p }
}

// awsPasswords are good for 12 hours, each of its own: the first one is {{password}}, the
// next one {{next password}}.
func awsPasswords(saysWhen bool) func(*guest) {
	return func(g *guest) {
		given := 0
		g.credential = func() pullthrough.Credential {
			given++
			c := pullthrough.Credential{Username: "AWS", AccessToken: registryPassword}
			if given == 2 {
				c.AccessToken = nextPassword
			}
			assert.LessOrEqual(g.t, given, 2, "the credentials are asked for once in 12 hours")
			if saysWhen {
				c.ExpiresAt = time.Now().Add(12 * time.Hour)
			}
			return c
		}
	}
}

// spoken are the lines of all transcripts that begin so.
func spoken(t testing.TB, begin string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob(transcriptFile("*"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, begin) {
				lines = append(lines, line)
			}
		}
	}
	require.NotEmpty(t, lines)
	return lines
}
