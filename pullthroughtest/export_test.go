package pullthroughtest

import "time"

// SetLeakGrace shortens the wait of a child process that is to fail.
func SetLeakGrace(d time.Duration) { leakGrace = d }

// MatchPattern is tested by itself, since a wrong pattern makes other tests pass.
var MatchPattern = matchPattern
