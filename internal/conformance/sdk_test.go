package conformance_test

import (
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
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
	"deletion":            sdkDeletion,
	"referrers":           sdkReferrers,
	"settings":            sdkSettings,
	"restart":             sdkRestart,
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
		log.assertSaw(t, op.name, append([]string{"", "ServerException"}, exceptions[op.name]...))
	}
	assert.Len(t, exceptions, len(operations()))
	log.assertSaw(t, "ImageFailureCode", texts(types.ImageFailureCode("").Values()))
	log.assertSaw(t, "LayerFailureCode", texts(types.LayerFailureCode("").Values()))
	log.assertSaw(t, "LayerAvailability", texts(types.LayerAvailability("").Values()))
}

// assertSaw asserts that these, but for what is never answered, and nothing else was
// answered.
func (l *sdkLog) assertSaw(t *testing.T, what string, want []string) {
	t.Helper()
	want = slices.DeleteFunc(want, func(answer string) bool { return neverAnswered[what+" "+answer] != "" })
	assert.ElementsMatch(t, want, slices.Collect(maps.Keys(l.seen[what])), what)
}

func texts[E ~string](values []E) (all []string) {
	for _, value := range values {
		all = append(all, string(value))
	}
	return all
}
