package pullthrough_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// quirks are registries as they are, each under its real name.
var quirks = []row{
	{
		"Q-dockerhub", "is Docker Hub, by any of its names",
		"registry-1.docker.io is asked, for names as they are, without `library/`; the credentials go to auth.docker.io alone", testQuirkDockerHub,
	},
	{
		"Q-dockerhub-429", "is Docker Hub and limits the rate of pulls",
		"a first pull is tried 4 times, or refused at once with a Retry-After over 10 s; a stored tag is served after one HEAD", testQuirkDockerHub429,
	},
	{
		"Q-ghcr", "is GHCR, which refuses a token for another scope, and any expired one, with 403",
		"the token is for the image's own repository; an expired one is refused, or gone without if the policy says so", testQuirkGHCR,
	},
	{
		"Q-artifact-registry", "is Artifact Registry, whose token server knows no POST, or sends to a login page",
		"an identity token gives way to the password; a login page is an error that names the host", testQuirkArtifactRegistry,
	},
	{
		"Q-ecr", "is a private ECR registry, which answers 403 to an expired password, and has its blobs in S3",
		"the credentials are asked for anew, once, and never reach S3", testQuirkECR,
	},
	{
		"Q-ecr-public", "is ECR Public, which answers 400 to an expired token and 401 to every HEAD of a blob",
		"one new token, with the scope `aws`; blobs are never asked for by HEAD", testQuirkECRPublic,
	},
	{
		"Q-gallery", "is gallery.ecr.aws, a web page for every path",
		"refused: nothing of it is stored or served", testQuirkGallery,
	},
	{
		"Q-acr", "is Azure Container Registry",
		"an identity token goes by POST, a refresh token as the password of the user with the null GUID by GET", testQuirkACR,
	},
	{
		"Q-quay", "is Quay, which wants no token for what is public, and answers 502 now and then",
		"tried again; the credentials are not sent before it asks for them, nor to its CDN", testQuirkQuay,
	},
	{
		"Q-gitlab", "is GitLab, with its token server on gitlab.com and tokens of unknown lifetime",
		"the credentials go to gitlab.com, or to the host that the policy names; a token is used for less than a minute", testQuirkGitLab,
	},
	{
		"Q-k8s", "is registry.k8s.io, which redirects to a registry that wants a token, and to S3, which answers 400 to a resume",
		"an anonymous token there, never the rule's credentials; a blob goes on, or begins anew, from registry.k8s.io", testQuirkK8s,
	},
	{
		"Q-harbor", "is Harbor: what is missing is UNKNOWN, and HEAD of a blob 404",
		"missing is 404; the size of a blob comes from GET", testQuirkHarbor,
	},
	{
		"Q-jfrog", "is JFrog, whose token server answers every POST with 401",
		"an identity token gives way to the password, once; without one the pull is refused", testQuirkJFrog,
	},
	{
		"Q-redhat", "is Red Hat's: manifests typed text/plain, layers labelled gzip-encoded, what is missing is UNKNOWN",
		"the manifest's own mediaType counts, and bytes are taken as they come; missing is 404", testQuirkRedHat,
	},
	{
		"Q-nexus", "is Nexus, which writes BASIC",
		"the scheme is read in any case", testQuirkNexus,
	},
	{
		"Q-ghes", "is GitHub Enterprise Server, which answers 405 to HEAD of a manifest",
		"the check of a tag is a GET", testQuirkGHES,
	},
}

func TestUpstreamQuirks(t *testing.T) { testkit.RunRows(t, quirks) }
