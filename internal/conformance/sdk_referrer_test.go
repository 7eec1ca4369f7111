package conformance_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const sdkSignature = "application/vnd.test.sig"

// sdkReferrers lists what refers to an image upstream, page by page, for which the
// SDK has no paginator.
func sdkReferrers(t *testing.T, log *sdkLog) {
	f, subject := startAWS(t, log), testImage(0)
	f.quay.Push(sdkUpstream, "v1", subject)
	var want []types.ImageReferrer
	for i := range 3 {
		kind := []string{sdkSignature, sdkSignature, "application/vnd.test.sbom"}[i]
		a := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i + 1), ArtifactType: kind, Subject: subject})
		f.quay.Push(sdkUpstream, "", a)
		want = append(want, types.ImageReferrer{Digest: str(a.Digest.String()), MediaType: &a.MediaType, ArtifactType: &kind, Size: aws.Int64(int64(len(a.Content)))})
	}
	slices.SortFunc(want, func(x, y types.ImageReferrer) int { return strings.Compare(*x.Digest, *y.Digest) })
	createQuay(t, f, "quay")
	require.Empty(t, f.batchGet(t, sdkRepo, tagged("v1")).Failures)
	assert.Zero(t, f.quay.Count("GET /v2/team/app/referrers/*"), "a pull does not bring referrers")

	list := func(in ecr.ListImageReferrersInput) *ecr.ListImageReferrersOutput {
		t.Helper()
		in.RepositoryName, in.SubjectId, in.RegistryId = str(sdkRepo), &types.SubjectIdentifier{ImageDigest: str(subject.Digest.String())}, str(sdkAccount)
		out, err := f.ListImageReferrers(t.Context(), &in)
		require.NoError(t, err)
		return out
	}
	assertAnswer(t, &ecr.ListImageReferrersOutput{Referrers: want}, list(ecr.ListImageReferrersInput{}))
	first := list(ecr.ListImageReferrersInput{MaxResults: aws.Int32(2)})
	require.NotNil(t, first.NextToken)
	assertAnswer(t, &ecr.ListImageReferrersOutput{Referrers: want[:2], NextToken: first.NextToken}, first)
	assertAnswer(t, &ecr.ListImageReferrersOutput{Referrers: want[2:]}, list(ecr.ListImageReferrersInput{MaxResults: aws.Int32(2), NextToken: first.NextToken}))
	signatures := list(ecr.ListImageReferrersInput{Filter: &types.ListImageReferrersFilter{ArtifactTypes: []string{sdkSignature}, ArtifactStatus: types.ArtifactStatusFilterActive}})
	assert.Len(t, signatures.Referrers, 2)
	archived := list(ecr.ListImageReferrersInput{Filter: &types.ListImageReferrersFilter{ArtifactStatus: types.ArtifactStatusFilterArchived}})
	assertAnswer(t, &ecr.ListImageReferrersOutput{Referrers: []types.ImageReferrer{}}, archived)
	assert.Equal(t, 1, f.quay.Count("GET /v2/team/app/referrers/*"), "the list is kept")
	sdkAnnotated(t, f)
	sdkReferrerExceptions(t, f)
}

// sdkAnnotated has a referrer whose annotations are told along.
func sdkAnnotated(t *testing.T, f *fakeAWS) {
	t.Helper()
	subject := strings.ReplaceAll(nowhere, "aaaa", "bbbb")
	d := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(nowhere), Size: 725, ArtifactType: sdkSignature,
		Annotations: map[string]string{"org.test/<note>": "a & b"},
	}
	list, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	require.NoError(t, err)
	defer f.quay.Fault(pullthroughtest.Fault{Match: "GET /v2/team/app/referrers/" + subject, Body: list})()
	out, err := f.ListImageReferrers(t.Context(), &ecr.ListImageReferrersInput{RepositoryName: str(sdkRepo), SubjectId: &types.SubjectIdentifier{ImageDigest: &subject}})
	require.NoError(t, err)
	assertAnswer(t, &ecr.ListImageReferrersOutput{Referrers: []types.ImageReferrer{{
		Digest: str(nowhere), MediaType: &d.MediaType, ArtifactType: str(sdkSignature), Size: aws.Int64(725), Annotations: d.Annotations,
	}}}, out)
}

func sdkReferrerExceptions(t *testing.T, f *fakeAWS) {
	t.Helper()
	list := func(repo, subject string) (*ecr.ListImageReferrersOutput, error) {
		return f.ListImageReferrers(t.Context(), &ecr.ListImageReferrersInput{RepositoryName: &repo, SubjectId: &types.SubjectIdentifier{ImageDigest: &subject}})
	}
	none, err := list(sdkRepo, nowhere)
	require.NoError(t, err)
	assertAnswer(t, &ecr.ListImageReferrersOutput{Referrers: []types.ImageReferrer{}}, none)
	_, err = list("quay/none", nowhere)
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none"))
	f.quay.Fault(refuseAll)
	_, err = list(sdkRepo, strings.ReplaceAll(nowhere, "aaaa", "cccc"))
	assertException[*types.UnableToListUpstreamImageReferrersException](t, err, "The authentication to the upstream registry failed. "+
		"Verify that the credentials provided in the pull through cache rule are correct, and try again.")
}
