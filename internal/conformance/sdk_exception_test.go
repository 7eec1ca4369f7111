package conformance_test

import (
	"maps"
	"slices"
)

// exceptions are those that ECR's API reference names for each operation.
// ServerException is all operations'. ValidationException is nobody's: what breaks
// the model is an InvalidParameterException (invalid-vs-validation).
var exceptions = map[string][]string{
	"CreatePullThroughCacheRule": {
		"InvalidParameterException", "PullThroughCacheRuleAlreadyExistsException", "UnsupportedUpstreamRegistryException",
		"LimitExceededException", "UnableToAccessSecretException", "SecretNotFoundException", "UnableToDecryptSecretValueException",
	},
	"DescribePullThroughCacheRules": {"InvalidParameterException", "PullThroughCacheRuleNotFoundException"},
	"UpdatePullThroughCacheRule": {
		"InvalidParameterException", "PullThroughCacheRuleNotFoundException",
		"UnableToAccessSecretException", "SecretNotFoundException", "UnableToDecryptSecretValueException",
	},
	"DeletePullThroughCacheRule":   {"InvalidParameterException", "PullThroughCacheRuleNotFoundException"},
	"ValidatePullThroughCacheRule": {"InvalidParameterException", "PullThroughCacheRuleNotFoundException"},

	"CreateRepositoryCreationTemplate":    {"InvalidParameterException", "TemplateAlreadyExistsException", "LimitExceededException", "KmsException"},
	"DescribeRepositoryCreationTemplates": {"InvalidParameterException"},
	"UpdateRepositoryCreationTemplate":    {"InvalidParameterException", "TemplateNotFoundException"},
	"DeleteRepositoryCreationTemplate":    {"InvalidParameterException", "TemplateNotFoundException"},

	"RegisterPullTimeUpdateExclusion":   {"InvalidParameterException", "ExclusionAlreadyExistsException", "LimitExceededException"},
	"DeregisterPullTimeUpdateExclusion": {"InvalidParameterException", "ExclusionNotFoundException"},
	"ListPullTimeUpdateExclusions":      {"InvalidParameterException"},

	"GetAuthorizationToken":       {"InvalidParameterException"},
	"DescribeRepositories":        {"InvalidParameterException", "RepositoryNotFoundException"},
	"DescribeImages":              {"InvalidParameterException", "RepositoryNotFoundException", "ImageNotFoundException"},
	"ListImages":                  {"InvalidParameterException", "RepositoryNotFoundException"},
	"BatchGetImage":               {"InvalidParameterException", "RepositoryNotFoundException", "UnableToGetUpstreamImageException", "LimitExceededException"},
	"GetDownloadUrlForLayer":      {"InvalidParameterException", "RepositoryNotFoundException", "LayersNotFoundException", "LayerInaccessibleException", "UnableToGetUpstreamLayerException"},
	"BatchCheckLayerAvailability": {"InvalidParameterException", "RepositoryNotFoundException"},
	"BatchDeleteImage":            {"InvalidParameterException", "RepositoryNotFoundException"},
	"DeleteRepository":            {"InvalidParameterException", "RepositoryNotFoundException", "RepositoryNotEmptyException", "KmsException"},
	"CreateRepository": {
		"InvalidParameterException", "InvalidTagParameterException", "TooManyTagsException", "RepositoryAlreadyExistsException", "LimitExceededException", "KmsException",
	},
	"PutImageTagMutability":                   {"InvalidParameterException", "RepositoryNotFoundException"},
	"PutImageScanningConfiguration":           {"InvalidParameterException", "RepositoryNotFoundException"},
	"BatchGetRepositoryScanningConfiguration": {"InvalidParameterException", "RepositoryNotFoundException"},
	"GetRepositoryPolicy":                     {"InvalidParameterException", "RepositoryNotFoundException", "RepositoryPolicyNotFoundException"},
	"SetRepositoryPolicy":                     {"InvalidParameterException", "RepositoryNotFoundException"},
	"DeleteRepositoryPolicy":                  {"InvalidParameterException", "RepositoryNotFoundException", "RepositoryPolicyNotFoundException"},
	"GetLifecyclePolicy":                      {"InvalidParameterException", "RepositoryNotFoundException", "LifecyclePolicyNotFoundException"},
	"PutLifecyclePolicy":                      {"InvalidParameterException", "RepositoryNotFoundException"},
	"DeleteLifecyclePolicy":                   {"InvalidParameterException", "RepositoryNotFoundException", "LifecyclePolicyNotFoundException"},
	"ListTagsForResource":                     {"InvalidParameterException", "RepositoryNotFoundException"},
	"TagResource":                             {"InvalidParameterException", "InvalidTagParameterException", "TooManyTagsException", "RepositoryNotFoundException"},
	"UntagResource":                           {"InvalidParameterException", "InvalidTagParameterException", "TooManyTagsException", "RepositoryNotFoundException"},

	"GetRegistryPolicy":                {"InvalidParameterException", "RegistryPolicyNotFoundException"},
	"PutRegistryPolicy":                {"InvalidParameterException"},
	"DeleteRegistryPolicy":             {"InvalidParameterException", "RegistryPolicyNotFoundException"},
	"DescribeRegistry":                 {"InvalidParameterException"},
	"GetAccountSetting":                {"InvalidParameterException"},
	"PutAccountSetting":                {"InvalidParameterException", "LimitExceededException"},
	"GetRegistryScanningConfiguration": {"InvalidParameterException"},
	"PutRegistryScanningConfiguration": {"InvalidParameterException", "BlockedByOrganizationPolicyException"},

	"ListImageReferrers": {"InvalidParameterException", "RepositoryNotFoundException", "UnableToListUpstreamImageReferrersException"},
}

// neverAnswered are exceptions and failure codes that are never answered, and why.
var neverAnswered = map[string]string{
	"BatchGetImage LimitExceededException":     "nothing limits repositories and images",
	"CreateRepository LimitExceededException":  "after 100,000 repositories only",
	"PutAccountSetting LimitExceededException": "nothing limits settings",
	"UntagResource TooManyTagsException":       "they become fewer",

	"BatchGetRepositoryScanningConfiguration RepositoryNotFoundException":   "it is a failure of its own",
	"PutRegistryScanningConfiguration BlockedByOrganizationPolicyException": "there are no organizations",

	"DescribeRegistry InvalidParameterException":                 "the request has no members",
	"GetRegistryPolicy InvalidParameterException":                "the request has no members",
	"DeleteRegistryPolicy InvalidParameterException":             "the request has no members",
	"GetRegistryScanningConfiguration InvalidParameterException": "the request has no members",
	"GetDownloadUrlForLayer LayerInaccessibleException":          "nothing is archived",
	"DeleteRepository KmsException":                              "nothing is encrypted",
	"ImageFailureCode ImageInaccessible":                         "nothing is archived",
	"ImageFailureCode KmsError":                                  "nothing is encrypted",
	"LayerAvailability ARCHIVED":                                 "nothing is archived",
}

// allExceptions are all of them, each once.
func allExceptions() []string {
	all := map[string]bool{"ServerException": true}
	for _, list := range exceptions {
		for _, exception := range list {
			all[exception] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
