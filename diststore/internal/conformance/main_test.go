package conformance_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// versitygw is the binary of the S3 server; set by TestMain, read-only afterwards.
var versitygw string

// TestMain builds the server before m.Run, whose clock (go test -timeout) thus
// does not count that. Go keeps the binary: the next run takes a second.
func TestMain(m *testing.M) {
	for _, variable := range os.Environ() { // the SDK heeds them, and some change http.DefaultClient
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			_ = os.Unsetenv(name)
		}
	}
	if proxyProcess() {
		return
	}
	var problem strings.Builder
	cmd := exec.Command("go", "tool", "-n", "versitygw")
	cmd.Stderr = &problem
	path, err := cmd.Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "go tool -n versitygw: %v\n%s", err, problem.String())
		os.Exit(1)
	}
	versitygw = strings.TrimSpace(string(path))
	logrus.SetLevel(logrus.PanicLevel)                   // the registry tells of each request
	transport := http.DefaultTransport.(*http.Transport) // the SDK's, too
	transport.DialContext, transport.Proxy = pullthroughtest.DialLoopback, nil
	os.Exit(m.Run())
}
