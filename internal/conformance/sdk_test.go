package conformance_test

import (
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// refuseAll has an upstream refuse everybody.
var refuseAll = pullthroughtest.Fault{Status: 401}

// sdkTests drive a fake ECR through the SDK.
var sdkTests = map[string]func(*testing.T, *sdkLog){
	"rules":               sdkRules,
	"rule pages":          sdkRulePages,
	"rule exceptions":     sdkRuleExceptions,
	"rule limits":         sdkRuleLimits,
	"missing rules":       sdkMissingRules,
	"templates":           sdkTemplates,
	"template limits":     sdkTemplateLimits,
	"template exceptions": sdkTemplateExceptions,
	"exclusions":          sdkExclusions,
	"BatchGetImage":       sdkBatchGetImage,
	"private image":       sdkPrivateImage,
	"images":              sdkImages,
	"repositories":        sdkRepositories,
	"repository pages":    sdkRepositoryPages,
	"layers":              sdkLayers,
	"referrers":           sdkReferrers,
	"login":               sdkLogin,
	"guarded login":       sdkGuardedLogin,
	"secret troubles":     sdkSecretTroubles,
	"server exceptions":   sdkServerExceptions,
	"invalid parameters":  sdkInvalidParameters,
}

// TestSDK has Amazon's SDK for Go go through each operation that ecrapi has, to
// success and to each exception.
func TestSDK(t *testing.T) {
	t.Parallel()
	log := &sdkLog{}
	var ran atomic.Int32
	t.Run("drives", func(t *testing.T) {
		for name, test := range sdkTests {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				ran.Add(1)
				test(t, log)
			})
		}
	})
	if int(ran.Load()) < len(sdkTests) {
		return // -run has picked some: nobody expects them to cover everything
	}
	for _, op := range operations() {
		want := append([]string{"", "ServerException"}, exceptions[op.name]...)
		slices.Sort(want)
		assert.Equal(t, want, slices.Sorted(maps.Keys(log.seen[op.name])), "what %s answered", op.name)
	}
	assert.Len(t, exceptions, len(operations()))
}
