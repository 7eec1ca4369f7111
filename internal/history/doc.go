// Package history is a test of the whole proxy: random histories over real HTTP.
//
// A history is a world (a proxy, its Store, three upstream registries, two tenants) and
// what happens in it: clients pull, import and push, an operator moves tags, changes
// rules and credentials, breaks registries and Stores, and restarts the proxy. All of
// that is planned from a seed. What each client was told is compared with a model of what
// was true at the time; see invariants_test.go for what must hold.
//
// The ordinary suite runs histories for 5 s, and for 30 s where PULLTHROUGH_LONG is set,
// as in .ci/run. Ten minutes over all worlds:
//
//	go test -race -timeout 20m ./internal/history -run History -history 10m
//
// A violation names its seed and the number of its world. The same plan again, in which
// goroutines may meet in another order:
//
//	go test -race ./internal/history -run History -history.seed 7 -history.world 3
//
// mutants/ has faults to plant, each a few lines of the sources that are replaced. The test
// wants each found within 90 s. Two of 18 are not yet: few histories lead to
// keeplocal-is-ignored and to tail-is-shown.
//
//	go test -v -timeout 30m ./internal/history -run 'Mutants$' -history.mutants
package history
