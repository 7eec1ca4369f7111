package ecrapi_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

var ecrWire = []trait{
	{"A01", "an operation is a POST of JSON, and `X-Amz-Target` names it", "documented", "the same, on any path; answers have a request id", TestAnyPathAndContentType},
	{"A02", "there are more operations: pushes, scans, replication, signing, storage classes, previews of lifecycle policies", "documented", "`API.Next` gets them, untouched; without it they are refused by name. `ecrapi.Operations` lists who answers which", TestOperationsAreAnsweredByName},
	{"A03", "an operation that nobody knows", "inferred", "`UnknownOperationException`, where there is no `API.Next`", TestUnknownTargetsWithoutNext},
	{"A04", "an exception is `{\"__type\":…,\"message\":…}` with status 400, never 404 or 409", "documented", "the same", testA04},
	{"A05", "ECR's own trouble is `ServerException`, status 500", "documented", "the same, without details; `API.Logger` gets them", TestAStateThatFails},
	{"A06", "timestamps are numbers: seconds since 1970, with a fraction if need be", "documented", "the same, to the millisecond", TestTimestampsHaveMilliseconds},
	{"A07", "members that are not set are absent", "inferred", "the same in answers; in requests null is absent, and what is not known is ignored", TestMembersThatAreNullOrUnknown},
	{"A22", "the names of members are case-sensitive", "documented", "the same, at every depth, in policies and secrets too: one that is spelled otherwise is not known", TestNamesOfMembersMatchExactly},
	{"A08", "what is no JSON, or has a member of the wrong type", "inferred", "`SerializationException`, with the member's name", TestGarbage},
	{"A09", "a request of more than 1 MiB", "chosen", "`SerializationException`; no more than that is read", TestBodiesAreReadThroughALimit},
	{"A10", "a member outside the API model: `Invalid parameter at 'x' failed to satisfy constraint: '…'`", "chosen, `invalid-vs-validation`", "the sentence, which was seen, in an `InvalidParameterException`, never a `ValidationException`; the first such member is told", TestBrokenConstraints},
	{"A11", "callers whom nobody knows, or who may not", "inferred", "an error of `API.Identify` that is `ErrUnauthorized` is `UnrecognizedClientException`; an `*Error` is what it says, for example `AccessDeniedException`", TestCallersThatAreNotKnown},
	{"A12", "rules, templates and exclusions are those of one account in one Region", "documented", "the same", TestAccountsAndRegionsAreApart},
	{"A13", "a `registryId` of another account", "chosen, `other-registry`", "`AccessDeniedException` for callers whose account is known; others may name any", TestTheRegistryThatARequestNames},
	{"A14", "lists come in pages; the last one has no `nextToken`", "documented", "the same", TestPages},
	{"A15", "a page has 1 to 1,000 items", "documented", "the same", TestPageSizes},
	{"A16", "100, unless the request says", "documented", "the same", TestAPageHas100ItemsByDefault},
	{"A17", "the order of lists", "chosen, `describe-order`", "bytewise by prefix, ARN, name or digest. A page begins after the last item of the one before, whatever was made or deleted meanwhile", TestPagesWhileTheListChanges},
	{"A18", "a `nextToken` that the operation has not returned", "inferred", "`InvalidParameterException`", TestTokensOfOthers},
	{"A19", "a `nextToken` of no characters, as AWS's own examples send it", "chosen, `empty-token`", "counts as absent", testA19},
	{"A20", "a `nextToken` along with prefixes", "chosen, `token-with-filter`", "`InvalidParameterException`; what is asked for by prefix comes on one page", TestATokenDoesNotGoWithAFilter},
	{"A21", "settings last", "inferred", "as long as `API.State` keeps them: by default in memory, of 10,000 registries at most", TestRegistriesInMemoryAreLimited},
	{"A23", "requests are signed for the service `ecr`, and sent to `api.ecr.REGION.amazonaws.com`", "documented", "departs: the API answers on any host and checks no signature. `ScopeIdentity` reads from a signature's scope the Region, and the account where the key's ID is the number of one", TestScopeIdentity},
}

func testA04(t *testing.T) {
	r := newRegistry(t, nil, nil)
	r.create(t, "taken")
	for op, c := range map[string]struct{ request, code string }{
		"CreatePullThroughCacheRule":        {`{"ecrRepositoryPrefix":"taken","upstreamRegistryUrl":"quay.io"}`, "PullThroughCacheRuleAlreadyExistsException"},
		"DeletePullThroughCacheRule":        {`{"ecrRepositoryPrefix":"gone"}`, "PullThroughCacheRuleNotFoundException"},
		"DeleteRepositoryCreationTemplate":  {`{"prefix":"gone"}`, "TemplateNotFoundException"},
		"DeregisterPullTimeUpdateExclusion": {object("principalArn", role), "ExclusionNotFoundException"},
		"DescribeImages":                    {`{"repositoryName":"hub/gone"}`, "RepositoryNotFoundException"},
	} {
		resp, body := r.send(t, target+op, c.request)
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
		assert.Equal(t, map[string]any{"__type": c.code, "message": messageOf(t, body)}, parse(t, body))
		assert.NotEmpty(t, messageOf(t, body))
	}
}

func testA19(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, l := range lists {
		l.add(t, c, l.name(0))
		names, next := l.page(t, c, `{"nextToken":"","maxResults":1}`)
		assert.Equal(t, []string{l.name(0)}, names)
		assert.Empty(t, next)
	}
}
