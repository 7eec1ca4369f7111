package conformance_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// fakeecrReady is the line that fakeecr promises on its standard output.
var fakeecrReady = regexp.MustCompile(`(?m)^listening on http://(\S+)$`)

// prefix is the rule's prefix in all tests.
const prefix = "mirror"

// fakeECR is cmd/fakeecr, running as its own process.
type fakeECR struct {
	*process
	host string // localhost:port
}

// startFakeECR has one rule, prefix → to, and the flags in extra.
func startFakeECR(t testing.TB, to string, extra ...string) *fakeECR {
	t.Helper()
	return runFakeECR(t, append([]string{"-rule", prefix + "=" + to}, extra...)...)
}

// runFakeECR has the flags in args. However the test ends, fakeecr must end well on
// SIGTERM, races included.
func runFakeECR(t testing.TB, args ...string) *fakeECR {
	t.Helper()
	p, addr := start(t, fakeecrReady, fakeecrBin, append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	p.quitAfter(t, serveTimeout)
	t.Cleanup(func() {
		p.stop(t)
		assert.Zero(t, p.cmd.ProcessState.ExitCode(), "exit status of fakeecr after SIGTERM")
	})
	return &fakeECR{process: p, host: strings.Replace(addr, "127.0.0.1", "localhost", 1)}
}

// ref is the image's name behind the rule.
func (f *fakeECR) ref(img *image) ref {
	return ref{host: f.host, repo: prefix + "/" + img.repo, tag: img.tag}
}

// credential is the flag that gives the rule its secret.
func credential(user, pass string) []string {
	return []string{"-credential", prefix + "=" + user + ":" + pass}
}

// flagsFor is what fakeecr needs for an upstream of that kind.
func flagsFor(a auth) []string {
	if a == authOpen {
		return nil
	}
	return credential(puller, password)
}
