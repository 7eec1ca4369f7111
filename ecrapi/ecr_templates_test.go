package ecrapi_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

var ecrSecrets = []trait{
	{"S01", "Create and Update want a secret that exists: `SecretNotFoundException`", "documented", "the same, by what `API.Secrets` says, with a sentence of our own; a refused rule is not kept", badSecret("not found")},
	{"S02", "that can be read: `UnableToAccessSecretException`", "documented", "the same", badSecret("unreadable")},
	{"S03", "and decrypted: `UnableToDecryptSecretValueException`", "documented", "the same", badSecret("undecrypted")},
	{"S04", "what it says is looked at when it is used, not before: plain `test` is taken", "measured, `empty-secret`", "the same, also for a secret that has no version yet", TestTheContentOfASecretIsNotCheckedAtCreate},
	{"S05", "it is a JSON object with `username` and `accessToken`, in this case, of 65,536 bytes at most", "documented", "the same; everything else is of no use", TestSecretsThatAreOfNoUse},
	{"S06", "it is read at the time of a pull", "chosen, `secret-cache`", "anew each time that `Proxy` asks `API.Credentials`", TestASecretIsReadAnew},
	{"S07", "no secret is asked for in vain", "inferred", "the same: not for a rule that is refused or does not exist, nor for one without a secret", TestSecretsAreNotAskedForInVain},
	{"S08", "Secrets Manager fails", "inferred", "`ServerException`, without its words", TestAVaultThatFails},
	{"S09", "ECR itself is reached by a role, in the same account without", "documented", "departs: roles are the host's to play, in `Proxy.Credentials`; `API.Credentials` has nothing for such a rule", TestCredentialsOfRulesWithoutASecret},
}

var ecrTemplates = []trait{
	{"T01", "a template is answered with what was sent, `AES256` and `MUTABLE` where nothing was", "measured", "the same, from Create to Delete", TestATemplateFromCreateToDelete},
	{"T02", "its prefix has up to 256 characters, not 30", "documented", "the same", TestBrokenTemplatePrefixes},
	{"T03", "its other members have constraints too", "documented", "the same, in the words of A10", brokenTemplate("Member must ")},
	{"T04", "\"ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to …\"", "measured", "the same words, in the frame of A10", brokenTemplate("ImageTagMutabilityExclusionFilters are not allowed")},
	{"T05", "\"ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to …\"", "measured", "the same words, in the frame of A10", brokenTemplate("ImageTagMutabilityExclusionFilters can't be null")},
	{"T06", "\"Invalid encryption configuration: Encryption key should not be set for AES256 encryption.\"", "measured", "the same words, in the frame of A10", brokenTemplate("Invalid encryption configuration")},
	{"T07", "a key of another Region is a `KmsException`, \"Invalid arn\" and the Region", "measured", "the same", TestAKeyOfAnotherRegion},
	{"T08", "the prefix is taken: `TemplateAlreadyExistsException`", "documented", "the same, with a sentence of our own; `foo/` is `foo`", TestATemplateThatExists},
	{"T09", "there is a limit: `LimitExceededException`", "chosen, `template-quota`", "100 templates in a registry", TestThe101stTemplate},
	{"T10", "Update and Delete of none: `TemplateNotFoundException`", "documented", "the same, with a sentence of our own", TestATemplateThatDoesNotExist},
	{"T11", "Describe of a prefix that has no template", "chosen, `template-unknown-prefix`", "left out of the list; Describe does not declare `TemplateNotFoundException`", TestDescribeLeavesOutTemplatesThatDoNotExist},
	{"T12", "Update of some members", "chosen, `template-update`", "keeps the others, and `\"\"` or `[]` clears", templateUpdated("nothing", "description", "cleared", "applied for", "tags", "encryption", "filters alone", "policies")},
	{"T13", "Update of the mutability alone", "chosen, `template-update`", "takes the filters with it", templateUpdated("mutability, and the filters go")},
	{"T14", "`KMS_DSSE` is for GovCloud only", "documented", "departs: taken in every Region", testT14},
	{"T15", "of the templates for pull through cache the one with the longest prefix applies, `ROOT` last", "documented", "the same, on whole path components", TestTemplateForARepository},
	{"T16", "a longer one for other occasions", "chosen, `template-shadowing`", "does not stand before it", TestTemplatesForOtherOccasions},
	{"T17", "a repository that a pull makes has the template's settings", "documented", "the same, in a `Catalog`: `DescribeRepositories` and `Catalog.Repository` show them", TestARepositoryIsMadeByItsTemplate},
	{"T18", "without a template it is mutable, `AES256`, without policies and tags", "documented", "the same", TestARepositoryWithoutATemplate},
	{"T19", "templates apply when a repository is made, not later", "documented", "the same", testT19},
	{"T20", "tags and a KMS key need a `customRoleArn`", "documented", "the same: the template can be created without, but not applied", TestTemplatesThatNeedARole},
	{"T21", "tags that the template makes immutable do not move", "documented, `immutable-refresh`", "the same, filters included; a tag may come once, and is checked once a day", TestTagsThatMustNotMove},
}

var ecrPulls = []trait{
	{"H01", "a GET of a manifest and `BatchGetImage` move `lastRecordedPullTime`", "documented", "the same; blobs, and what was not found, do not", TestTheTimeOfAPull},
	{"H02", "a HEAD", "chosen, `head-counts-pull`", "does not", TestAHeadIsNoPull},
	{"H03", "the time is moved once in 24 hours at least", "chosen, `pull-time`", "by each pull, at once", testH03},
	{"H04", "principals are registered, listed and deregistered: roles and users", "documented", "the same, with sentences of our own", TestExclusions},
	{"H05", "others are refused", "documented", "the same, in the words of A10", TestExclusionsThatAreNoPrincipals},
	{"H06", "there is a limit: `LimitExceededException`", "chosen, `exclusion-quota`", "100 principals in a registry, as many as the API lists", TestThe101stExclusion},
	{"H07", "pulls of a registered principal do not move the time", "documented", "the same, sessions of a role included", TestExcludedPrincipals},
	{"H08", "but check tags as others do", "documented", "the same", testH08},
	{"H09", "whether a principal is registered cannot be told", "chosen, `pull-time`", "the pull is not recorded, and goes on", TestAPullWhoseExclusionIsNotKnownIsNotRecorded},
}

func testT19(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.up.Push("a", "v2", image(2))
	r.pull(t, "a", "v1")
	r.template(t, `"imageTagMutability":"IMMUTABLE","repositoryPolicy":"{}"`)
	r.pull(t, "a", "v2")
	settings, err := r.catalog.Repository(t.Context(), repo("a"))
	require.NoError(t, err)
	assert.Equal(t, "MUTABLE", settings.ImageTagMutability)
	assert.Empty(t, settings.RepositoryPolicy)
	r.up.Push("b", "v1", image(1))
	r.pull(t, "b", "v1")
	settings, err = r.catalog.Repository(t.Context(), repo("b"))
	require.NoError(t, err)
	assert.Equal(t, "IMMUTABLE", settings.ImageTagMutability)
}

func testT14(t *testing.T) {
	for _, where := range []string{"us-gov-west-1", "eu-west-1"} {
		c := start(t, &ecrapi.API{Region: where})
		resp, body := c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"hub","appliedFor":["PULL_THROUGH_CACHE"],"encryptionConfiguration":{"encryptionType":"KMS_DSSE"}}`)
		assert.Equal(t, http.StatusOK, resp.StatusCode, body)
	}
}

func testH03(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	img := image(1)
	r.up.Push("a", "v1", img)
	for range 3 {
		r.wait(time.Second)
		r.pull(t, "a", "v1")
		assert.Equal(t, r.clock.Load(), r.pulledAt(t, img))
	}
	assert.Len(t, r.up.Log(), 1)
}

func testH08(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	resp, body := r.send(t, target+"RegisterPullTimeUpdateExclusion", object("principalArn", role))
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	pull := func(want string) {
		t.Helper()
		m, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "v1", Caller: role})
		require.NoError(t, err)
		assert.Equal(t, want, m.Descriptor.Digest.String())
		r.idle(t)
	}
	pull(image(1).Digest.String())
	r.up.Push("a", "v1", image(2))
	r.wait(23 * time.Hour)
	pull(image(1).Digest.String())
	r.wait(2 * time.Hour)
	pull(image(2).Digest.String())
	assert.Zero(t, r.pulledAt(t, image(2)))
}
