// Package testkit is what the tests of this repository share: a proxy between a
// registry and a Store ([World]), the same over HTTP ([Face]) or in a bubble of
// synthetic time ([Piped], [InBubble]), what was told and asked ([Events], [Door]), a
// watch on goroutines that tests leave behind ([Main]),
// and the tables of docs/ with the tests that prove them ([RunRows],
// [CheckDocument]). Only tests import it.
package testkit
