package shape

// The shapes of pull through cache rules, creation templates, exclusions and the settings of
// registries in the API model of 2026-08-07. The names are those of the model.
var (
	RulePrefix    = String{Min: 2, Max: 30, Pattern: prefix}
	RegistryID    = String{Pattern: pattern(`[0-9]{12}`)}
	CredentialARN = String{Min: 50, Max: 612, Pattern: pattern(`^arn:aws(-\w+)*:secretsmanager:[a-zA-Z0-9-:]+:secret:ecr\-pullthroughcache\/[a-zA-Z0-9\/_+=.@-]+$`)}
	RoleARN       = String{Max: 2048}
	Upstream      = String{Enum: []string{
		"ecr", "ecr-public", "quay", "k8s", "docker-hub", "github-container-registry",
		"azure-container-registry", "gitlab-container-registry", "chainguard",
	}}

	TemplatePrefix   = String{Min: 1, Max: 256, Pattern: prefix}
	Description      = String{Max: 256}
	EncryptionType   = String{Enum: []string{"AES256", "KMS", "KMS_DSSE"}}
	KMSKey           = String{Max: 2048, Pattern: pattern(`^$|arn:aws[a-z0-9-]*:kms:[a-z0-9-]+:[0-9]{12}:key\/[a-z0-9-]+`)}
	TagKey           = String{Min: 1, Max: 128}
	TagValue         = String{Max: 256}
	Mutability       = String{Enum: []string{"MUTABLE", "IMMUTABLE", "IMMUTABLE_WITH_EXCLUSION", "MUTABLE_WITH_EXCLUSION"}}
	FilterType       = String{Enum: []string{"WILDCARD"}}
	Filter           = String{Min: 1, Max: 128, Pattern: pattern(`^[0-9a-zA-Z._*-]{1,128}$`)}
	RepositoryPolicy = String{Max: 10240}
	LifecyclePolicy  = String{Max: 30720} // LifecyclePolicyTextForRepositoryCreationTemplate
	AppliedFor       = String{Enum: []string{"REPLICATION", "PULL_THROUGH_CACHE", "CREATE_ON_PUSH"}}

	RegistryPolicy     = String{Max: 10240}
	AccountSettingName = String{Min: 1, Max: 64}
	ScanType           = String{Enum: []string{"BASIC", "ENHANCED"}}
	ScanFrequency      = String{Enum: []string{"SCAN_ON_PUSH", "CONTINUOUS_SCAN", "MANUAL"}}
	ScanFilter         = String{Min: 1, Max: 255, Pattern: pattern(`^[a-z0-9*](?:[._\-/a-z0-9*]?[a-z0-9*]+)*$`)}

	PrincipalARN = String{Max: 200, Pattern: pattern(`^arn:aws(-[a-z]+)*:iam::[0-9]{12}:(role|user)/[\w+=,.@-]+(/[\w+=,.@-]+)*$`)}
)

var prefix = pattern(`^([a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\/?|ROOT)$`)
