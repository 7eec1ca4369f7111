package history_test

// What is known not to hold yet. Each of these keeps one check from being made; when the
// fault is gone, its line and what asks for it go.
const (
	headBelievesManifests = true // HEAD of a blob that is nowhere is answered from what a manifest told
	headsMisleadPushes    = true // HEAD of a blob that upstream has keeps a client from pushing it to a wrapped registry
	flippedTagsAreKept    = true // a manifest by tag that arrives damaged is stored under the digest that it has
)
