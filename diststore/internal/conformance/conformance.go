// Package conformance has no code of its own: its tests run diststore against a
// real S3 server and a real registry. See README.md.
package conformance
