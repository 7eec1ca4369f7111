package conformance_test

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const noRole = "The upstream registry belongs to another account. Specify a customRoleArn that may pull from it."

// sdkRules follows rules of each class of upstream through their life.
func sdkRules(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	open, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("quay"), UpstreamRegistryUrl: str("quay.io")})
	require.NoError(t, err)
	assertAnswer(t, &ecr.CreatePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: str("quay"), UpstreamRegistryUrl: str("quay.io"), RegistryId: str(sdkAccount), CreatedAt: recent,
	}, open)
	private, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{
		EcrRepositoryPrefix: str("cache/hub"), UpstreamRegistryUrl: str("registry-1.docker.io"), RegistryId: str(sdkAccount),
		UpstreamRegistry: types.UpstreamRegistryDockerHub, UpstreamRepositoryPrefix: str("library"), CredentialArn: str(hubARN),
	})
	require.NoError(t, err)
	assertAnswer(t, &ecr.CreatePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: str("cache/hub"), UpstreamRegistryUrl: str("registry-1.docker.io"), RegistryId: str(sdkAccount), CreatedAt: recent,
		UpstreamRegistry: types.UpstreamRegistryDockerHub, UpstreamRepositoryPrefix: str("library"), CredentialArn: str(hubARN),
	}, private)
	const far = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
	aws, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{
		EcrRepositoryPrefix: str("ROOT"), UpstreamRegistryUrl: str(far), CustomRoleArn: str(roleARN), UpstreamRepositoryPrefix: str("ROOT"),
	})
	require.NoError(t, err)
	assertAnswer(t, &ecr.CreatePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: str("ROOT"), UpstreamRegistryUrl: str(far), RegistryId: str(sdkAccount), CreatedAt: recent,
		CustomRoleArn: str(roleARN), UpstreamRepositoryPrefix: str("ROOT"),
	}, aws)

	hub := types.PullThroughCacheRule{
		EcrRepositoryPrefix: str("cache/hub"), UpstreamRegistryUrl: str("registry-1.docker.io"), RegistryId: str(sdkAccount), CreatedAt: recent, UpdatedAt: recent,
		UpstreamRegistry: types.UpstreamRegistryDockerHub, UpstreamRepositoryPrefix: str("library"), CredentialArn: str(hubARN),
	}
	described(t, f, nil, types.PullThroughCacheRule{
		EcrRepositoryPrefix: str("ROOT"), UpstreamRegistryUrl: str(far), RegistryId: str(sdkAccount), CreatedAt: recent, UpdatedAt: recent,
		CustomRoleArn: str(roleARN), UpstreamRepositoryPrefix: str("ROOT"),
	}, hub, types.PullThroughCacheRule{
		EcrRepositoryPrefix: str("quay"), UpstreamRegistryUrl: str("quay.io"), RegistryId: str(sdkAccount), CreatedAt: recent, UpdatedAt: recent,
	})
	described(t, f, []string{"cache/hub"}, hub)
	sdkValidate(t, f)
	sdkUpdate(t, f)
	sdkDelete(t, f)
}

// described asserts what Describe says, of all rules or of those with the prefixes.
func described(t *testing.T, f *fakeAWS, prefixes []string, want ...types.PullThroughCacheRule) {
	t.Helper()
	out, err := f.DescribePullThroughCacheRules(t.Context(), &ecr.DescribePullThroughCacheRulesInput{EcrRepositoryPrefixes: prefixes})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribePullThroughCacheRulesOutput{PullThroughCacheRules: want}, out)
}

// sdkValidate needs the rules of sdkRules.
func sdkValidate(t *testing.T, f *fakeAWS) {
	t.Helper()
	validate := func(prefix string, want *ecr.ValidatePullThroughCacheRuleOutput) {
		t.Helper()
		out, err := f.ValidatePullThroughCacheRule(t.Context(), &ecr.ValidatePullThroughCacheRuleInput{EcrRepositoryPrefix: &prefix, RegistryId: str(sdkAccount)})
		require.NoError(t, err)
		want.EcrRepositoryPrefix, want.RegistryId = &prefix, str(sdkAccount)
		assertAnswer(t, want, out)
	}
	validate("quay", &ecr.ValidatePullThroughCacheRuleOutput{UpstreamRegistryUrl: str("quay.io"), IsValid: true})
	validate("cache/hub", &ecr.ValidatePullThroughCacheRuleOutput{
		UpstreamRegistryUrl: str("registry-1.docker.io"), CredentialArn: str(hubARN), UpstreamRepositoryPrefix: str("library"), IsValid: true,
	})
	assert.Equal(t, 1, f.hub.Count("GET /token 200"), "%s", f.hub.Log())
	f.hub.Fault(refuseAll)
	validate("cache/hub", &ecr.ValidatePullThroughCacheRuleOutput{
		UpstreamRegistryUrl: str("registry-1.docker.io"), CredentialArn: str(hubARN), UpstreamRepositoryPrefix: str("library"),
		Failure: str("The upstream registry refused the credentials. Verify that they are correct."),
	})
	f.hub.Heal()

	_, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("far"), UpstreamRegistryUrl: str("111122223333.dkr.ecr.us-east-1.amazonaws.com")})
	require.NoError(t, err)
	validate("far", &ecr.ValidatePullThroughCacheRuleOutput{UpstreamRegistryUrl: str("111122223333.dkr.ecr.us-east-1.amazonaws.com"), Failure: str(noRole)})
}

// sdkUpdate changes each kind of credential, and nothing.
func sdkUpdate(t *testing.T, f *fakeAWS) {
	t.Helper()
	for _, row := range []struct {
		in   ecr.UpdatePullThroughCacheRuleInput
		want ecr.UpdatePullThroughCacheRuleOutput
	}{
		{ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("quay"), CustomRoleArn: str("")}, ecr.UpdatePullThroughCacheRuleOutput{EcrRepositoryPrefix: str("quay")}},
		{
			ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("cache/hub"), CredentialArn: str(ghcrARN), RegistryId: str(sdkAccount)},
			ecr.UpdatePullThroughCacheRuleOutput{EcrRepositoryPrefix: str("cache/hub"), CredentialArn: str(ghcrARN), UpstreamRepositoryPrefix: str("library")},
		},
		{
			ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("ROOT"), CustomRoleArn: str(roleARN + "2")},
			ecr.UpdatePullThroughCacheRuleOutput{EcrRepositoryPrefix: str("ROOT"), CustomRoleArn: str(roleARN + "2"), UpstreamRepositoryPrefix: str("ROOT")},
		},
	} {
		out, err := f.UpdatePullThroughCacheRule(t.Context(), &row.in)
		require.NoError(t, err)
		row.want.RegistryId, row.want.UpdatedAt = str(sdkAccount), recent
		assertAnswer(t, &row.want, out)
	}
}

// sdkDelete tells what was there, and then there is none: not by name, and not in
// the list.
func sdkDelete(t *testing.T, f *fakeAWS) {
	t.Helper()
	deleted, err := f.DeletePullThroughCacheRule(t.Context(), &ecr.DeletePullThroughCacheRuleInput{EcrRepositoryPrefix: str("cache/hub"), RegistryId: str(sdkAccount)})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DeletePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: str("cache/hub"), UpstreamRegistryUrl: str("registry-1.docker.io"), RegistryId: str(sdkAccount), CreatedAt: recent,
		CredentialArn: str(ghcrARN), UpstreamRepositoryPrefix: str("library"),
	}, deleted)
	_, err = f.DescribePullThroughCacheRules(t.Context(), &ecr.DescribePullThroughCacheRulesInput{EcrRepositoryPrefixes: []string{"cache/hub"}})
	assertException[*types.PullThroughCacheRuleNotFoundException](t, err, noSuchRule("cache/hub"))
	for _, prefix := range []string{"quay", "ROOT", "far"} {
		_, err = f.DeletePullThroughCacheRule(t.Context(), &ecr.DeletePullThroughCacheRuleInput{EcrRepositoryPrefix: &prefix})
		require.NoError(t, err)
	}
	described(t, f, nil, []types.PullThroughCacheRule{}...)
}

// sdkRulePages reads a list of rules page by page, and finds the last full.
func sdkRulePages(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	const rules = 6
	for i := range rules {
		createQuay(t, f, "rule"+strconv.Itoa(rules-i))
	}
	p := ecr.NewDescribePullThroughCacheRulesPaginator(f, &ecr.DescribePullThroughCacheRulesInput{}, func(o *ecr.DescribePullThroughCacheRulesPaginatorOptions) { o.Limit = 2 })
	var pages [][]string
	for p.HasMorePages() {
		out, err := p.NextPage(t.Context())
		require.NoError(t, err)
		var page []string
		for _, rule := range out.PullThroughCacheRules {
			page = append(page, *rule.EcrRepositoryPrefix)
		}
		pages = append(pages, page)
	}
	assert.Equal(t, [][]string{{"rule1", "rule2"}, {"rule3", "rule4"}, {"rule5", "rule6"}}, pages)
}

func createQuay(t *testing.T, f *fakeAWS, prefix string) {
	t.Helper()
	_, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: &prefix, UpstreamRegistryUrl: str("quay.io")})
	require.NoError(t, err)
}

func noSuchRule(prefix string) string {
	return fmt.Sprintf("The pull through cache rule with repository prefix '%s' does not exist in the registry with id '%s'", prefix, sdkAccount)
}
