package ecr

// Server is the exception for what should not happen.
const Server = "ServerException"

// Each operation that reaches upstream registries has its own exceptions for
// trouble with one, and for what is not there. These stand in their place where the
// operation is not known yet; see [Name].
const (
	UpstreamTrouble = "upstream trouble"
	NotThere        = "not there"
)

var upstreamOperations = map[string]struct{ trouble, notThere string }{
	"BatchGetImage":          {"UnableToGetUpstreamImageException", "ImageNotFoundException"},
	"GetDownloadUrlForLayer": {"UnableToGetUpstreamLayerException", "LayersNotFoundException"},
	"ListImageReferrers":     {"UnableToListUpstreamImageReferrersException", "UnableToListUpstreamImageReferrersException"},
	"":                       {Server, "ImageNotFoundException"}, // the others
}

// Name returns the exception that the operation op has for what: [UpstreamTrouble],
// [NotThere], or an exception that is the same for all operations.
func Name(what, op string) string {
	own, ok := upstreamOperations[op]
	if !ok {
		own = upstreamOperations[""]
	}
	switch what {
	case UpstreamTrouble:
		return own.trouble
	case NotThere:
		return own.notThere
	}
	return what
}
