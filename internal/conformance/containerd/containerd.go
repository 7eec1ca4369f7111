// Package containerd holds the tests with the clients that share containerd's
// libraries: containerd itself, BuildKit and stargz. They are a module of their own,
// since their versions of what they import are not those of the other clients. See
// README.md of internal/conformance.
package containerd
