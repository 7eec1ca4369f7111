package ecrapi_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

var ecrOperations = []trait{
	{"K01", "`CreateRepository` takes tags, mutability with filters, scanning and encryption", "documented", "the same; templates are for repositories that ECR makes itself, and do not apply", TestARepositoryIsCreated},
	{"K02", "the name is taken: `RepositoryAlreadyExistsException`, \"The repository with name '…' already exists in the registry with id '…'\"", "measured", "the same words", TestARepositoryIsCreated},
	{"K03", "members outside the API model; a key of another Region is a `KmsException`", "documented", "the same, in the words of A10; nothing is made", TestRepositoriesThatAreNotCreated},
	{"K09", "100,000 repositories in a Region, and no more: `LimitExceededException`", "documented", "the same, for all registries together, with a sentence of our own; pulls may make more", TestRepositoriesAreLimited},
	{"K04", "with `KMS` the key is answered as an ARN, whatever was sent", "documented", "departs: as it was sent, and none where none was; there is no KMS here", testK04},
	{"K05", "`PutImageTagMutability` changes mutability and filters together", "documented", "the same; tags that must not move stay from then on", TestTheMutabilityOfARepository},
	{"K06", "a filter has two `*` at most", "documented", "the same, in templates too, with a sentence of our own", TestTheMutabilityOfARepository},
	{"K07", "no such repository: `RepositoryNotFoundException`", "documented", "the same, from each of these operations; before, `Proxy.Authorize` is asked for the operation by its name", TestSettingsOfARepositoryThatDoesNotExist},
	{"K08", "settings last", "inferred", "those of a repository in `Catalog.File`, those of a registry in `API.State`", TestSettingsOfARepositoryAreKept},
	{"K10", "`SetRepositoryPolicy`, `GetRepositoryPolicy` and `DeleteRepositoryPolicy` answer the text as it was sent", "documented", "the same; it grants nothing: that is up to `Proxy.Authorize`. `force` has no effect", TestThePolicyOfARepository},
	{"K11", "no policy: `RepositoryPolicyNotFoundException`, \"Repository policy does not exist for the repository with name '…' in the registry with id '…'\"", "measured", "the same words", TestThePolicyOfARepository},
	{"K12", "what is no policy, or has a `Resource`: \"Invalid repository policy provided\" at `PolicyText`", "measured", "the same words, for templates at `repositoryPolicy`; whether principals and actions exist is not looked at", TestThePolicyOfARepository},
	{"K13", "`PutLifecyclePolicy`, `GetLifecyclePolicy` and `DeleteLifecyclePolicy` answer the text as it was sent", "documented", "the same; a host runs it, and says when by `LifecycleEvaluatedAt`. moto answers the time of the request", TestTheLifecyclePolicyOfARepository},
	{"K14", "`lastEvaluatedAt` of a policy that was never run is 0", "documented", "the same", TestTheLifecyclePolicyOfARepository},
	{"K15", "no policy: `LifecyclePolicyNotFoundException`, \"Lifecycle policy does not exist for the repository with name '…' in the registry with id '…'\"", "measured", "the same words", TestTheLifecyclePolicyOfARepository},
	{"K16", "what is no lifecycle policy: \"Lifecycle policy validation failure: …\" at `LifecyclePolicyText`", "measured", "the same, in ECR's words where they were seen, for templates at `lifecyclePolicy`; `sinceImagePulled` goes with `transition` only. moto knows neither `tagPatternList` nor `transition`", TestTheLifecyclePolicyOfARepository},
	{"K17", "policies of repositories and registries have up to 10,240 characters, lifecycle policies 30,720", "documented", "the same, in the words of A10", testK17},
	{"K20", "`TagResource` adds and overwrites, `UntagResource` ignores keys that are not there, `ListTagsForResource` lists", "documented", "the same, in the order of keys", TestTagsOfARepository},
	{"K21", "50 tags at most: `TooManyTagsException`; keys of 1 to 128 and values of up to 256 characters: `InvalidTagParameterException`", "documented", "the same, with the sentences of their documentation; keys do not begin with `aws:`", TestTagsOfARepository},
	{"K22", "one key twice in a request", "chosen, `tag-twice`", "`InvalidTagParameterException`", TestTagsOfARepository},
	{"K23", "an ARN of something else: \"Invalid ARN\" at `resourceArn`", "inferred, `resource-region`", "the same words, which moto has; so is one of another Region", TestResourcesThatAreNoRepositories},
	{"K30", "`PutRegistryPolicy`, `GetRegistryPolicy` and `DeleteRegistryPolicy` answer the text as it was sent", "documented", "the same; it grants nothing: that is up to `Proxy.Authorize`", TestThePolicyOfTheRegistry},
	{"K31", "no policy: `RegistryPolicyNotFoundException`, \"Registry policy does not exist in the registry with id '…'\"", "measured", "the same words", TestThePolicyOfTheRegistry},
	{"K32", "what is no policy, or has no `Resource`: \"Invalid registry policy provided\" at `PolicyText`", "measured", "the same words; all actions are taken, as in scope V2 (moto takes two)", TestThePolicyOfTheRegistry},
	{"K33", "`DescribeRegistry` tells of replication", "documented", "the registry's id, and no rules", TestSettingsOfARepositoryThatDoesNotExist},
	{"K34", "account settings: `BASIC_SCAN_TYPE_VERSION` is `AWS_NATIVE`, `REGISTRY_POLICY_SCOPE` is `V2`, `BLOB_MOUNTING` is `ENABLED` or `DISABLED`", "documented", "the same; they are kept, and have no effect. Terraform's own test still puts `CLAIR`, which is refused", TestAccountSettings},
	{"K35", "`BLOB_MOUNTING` that was never put", "chosen, `account-setting-default`", "`DISABLED`", TestAccountSettings},
	{"K40", "`PutRegistryScanningConfiguration` takes up to two rules; none was put: `BASIC`, without rules", "documented", "the same; nothing is scanned", TestTheScanningConfigurationOfTheRegistry},
	{"K41", "`BASIC` has `SCAN_ON_PUSH` and `MANUAL`, `ENHANCED` has `SCAN_ON_PUSH` and `CONTINUOUS_SCAN`", "documented", "the same, with a sentence of our own", TestTheScanningConfigurationOfTheRegistry},
	{"K42", "a filter without `*` matches every name that contains it, one with `*` the whole name", "documented", "the same", TestTheScanningConfigurationOfRepositories},
	{"K43", "where no rule matches, or both do", "chosen, `scan-frequency`", "`MANUAL`, or `SCAN_ON_PUSH` by the repository's own setting with `BASIC`; `CONTINUOUS_SCAN` goes before. All filters of the rule that match are listed (moto lists the last)", TestTheScanningConfigurationOfRepositories},
	{"K44", "`BatchGetRepositoryScanningConfiguration` of a repository that is not there: `REPOSITORY_NOT_FOUND`", "documented", "the same: a failure of its own among the others", TestTheScanningConfigurationOfRepositories},
	{"K45", "`PutImageScanningConfiguration` sets what `DescribeRepositories` shows", "documented", "the same", TestTheScanningConfigurationOfRepositories},
}

func testK04(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for _, key := range []string{``, `,"kmsKey":"alias/mine"`, `,"kmsKey":"arn:aws:kms:us-east-1:123456789012:key/a"`} {
		settings := `"imageTagMutability":"MUTABLE","imageScanningConfiguration":{"scanOnPush":false},"encryptionConfiguration":{"encryptionType":"KMS"` + key + `}`
		r.ok(t, "CreateRepository", `{`+hubA+`,`+settings+`}`, `{"repository":`+made("hub/a", settings)+`}`)
		r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[`+made("hub/a", settings)+`]}`)
		r.ok(t, "DeleteRepository", `{`+hubA+`}`, `{"repository":`+made("hub/a", settings)+`}`)
	}
	require.Empty(t, r.up.Log())
}

func testK17(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	require.NoError(t, r.catalog.CreateRepository(t.Context(), repo("a"), ecrapi.CatalogRepository{}))
	for _, c := range []struct {
		op, at, policy string
		most           int
	}{
		{"SetRepositoryPolicy", "policyText", aPolicy, 10_240},
		{"PutRegistryPolicy", "policyText", strings.Replace(aPolicy, `"Principal"`, `"Resource":"*","Principal"`, 1), 10_240},
		{"PutLifecyclePolicy", "lifecyclePolicyText", aLifecycle, 30_720},
	} {
		send := func(length int) string {
			body := object(c.at, c.policy+strings.Repeat(" ", length-len(c.policy)), "repositoryName", "hub/a")
			resp, answer := r.send(t, target+c.op, body)
			if resp.StatusCode == 200 {
				return ""
			}
			return messageOf(t, answer)
		}
		require.Empty(t, send(c.most), c.op)
		require.Equal(t, constraint(c.at, tooLong+strconv.Itoa(c.most)), send(c.most+1), c.op)
	}
	require.Empty(t, r.up.Log())
}
