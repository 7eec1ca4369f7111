package shape

// The shapes of repositories, images and layers in the API model. The names are those of
// the model.
var (
	RepositoryName = String{Min: 2, Max: 256, Pattern: pattern(`[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`)}
	ImageTag       = String{Min: 1, Max: 300}
	LayerDigest    = String{Pattern: pattern(`[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+`)}
	BatchedDigest  = String{Max: 1000} // BatchedOperationLayerDigest
	TagStatus      = String{Enum: []string{"TAGGED", "UNTAGGED", "ANY"}}
	ImageStatus    = String{Enum: []string{"ACTIVE", "ARCHIVED", "ACTIVATING", "ANY"}}
	ArtifactType   = String{Min: 1, Max: 255}

	LifecyclePolicyText = String{Min: 100, Max: 30720}
	RepositoryKMSKey    = String{Min: 1, Max: 2048} // KmsKey: an ARN, an alias or an id
)
