package conformance_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	s3driver "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
)

// What a proxy that is a process of its own finds in its environment.
const (
	envUpstream = "DISTSTORE_TEST_UPSTREAM"
	envServer   = "DISTSTORE_TEST_SERVER"
	envAccess   = "DISTSTORE_TEST_ACCESS"
	envKey      = "DISTSTORE_TEST_KEY"
	envRoot     = "DISTSTORE_TEST_ROOT"

	// What makes the tests heavier.
	envKills = "DISTSTORE_KILLS" // how many processes TestKilledProxies kills
	envLarge = "DISTSTORE_LARGE" // the size of the largest layer, in MiB
)

// proxyProcess is main of a child process: a proxy over a bucket, until it is
// killed. It reports whether this process is one.
func proxyProcess() bool {
	upstream := os.Getenv(envUpstream)
	if upstream == "" {
		return false
	}
	s := server{addr: os.Getenv(envServer), access: os.Getenv(envAccess), key: os.Getenv(envKey)}
	parameters := s.parameters("kills")
	parameters["rootdirectory"] = os.Getenv(envRoot)
	if err := serve(parameters, upstream); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return true
}

// serve runs the proxy until SIGTERM, and lets it store what it has.
func serve(parameters map[string]any, upstream string) error {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	driver, err := s3driver.FromParameters(ended, parameters)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	proxy := &pullthrough.Proxy{Store: diststore.New(driver), Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: upstream}}}
	go func() { _ = http.Serve(l, proxy) }() // it ends with the process
	<-ended.Done()
	return proxy.Shutdown(context.Background())
}

// child is a proxy in a process of its own.
type child struct {
	url string
	cmd *exec.Cmd
}

// startChild starts a proxy on the bucket "kills", below root. It is killed when
// the test ends, at the latest.
func startChild(t testing.TB, s *server, root, upstream string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), envUpstream+"="+upstream, envServer+"="+s.addr, envAccess+"="+s.access, envKey+"="+s.key,
		envRoot+"="+root, "TMPDIR="+t.TempDir())
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(c.kill)
	addr, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	c.url = "http://" + strings.TrimSpace(addr)
	return c
}

// kill sends SIGKILL to this process alone.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
}

// stop lets the process store what it has, and waits for its end.
func (c *child) stop(t testing.TB) {
	t.Helper()
	require.NoError(t, c.cmd.Process.Signal(syscall.SIGTERM))
	assert.NoError(t, c.cmd.Wait())
}

// kills is how often a process is killed: 3 times, or as the environment says.
func kills(t testing.TB) int { return setting(t, envKills, 3) }

// large is the size of a layer of several parts: 6 MiB, or as the environment
// says.
func large(t testing.TB) int64 { return int64(setting(t, envLarge, 6)) << 20 }

// setting is a number in the environment.
func setting(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return n
}

// TestKilledProxies kills one of two proxies at a random moment of a pull. What
// it leaves in the bucket is whole, the other proxy's clients notice nothing, and
// a new proxy has or gets every image.
func TestKilledProxies(t *testing.T) {
	t.Parallel()
	server, images := startServer(t), someImages(large(t))
	server.bucket(t, "kills")
	up, client := newUpstream(t, images), newClient(t)
	objects, broken := 0, 0
	for i := range kills(t) {
		root := fmt.Sprintf("/round-%d", i)
		parameters := server.parameters("kills")
		parameters["rootdirectory"] = root
		victim, other := startChild(t, server, root, up.URL), startChild(t, server, root, up.URL)
		broken += pullBeside(t, client, images, victim, other)
		objects += requireSound(t, open(t, parameters))
		after := startChild(t, server, root, up.URL)
		require.NoError(t, puller{after.url, prefix, client}.pullAll(t.Context(), images))
		other.stop(t)
		after.stop(t)
		objects += requireSound(t, open(t, parameters))
		require.NoError(t, puller{startRegistry(t, parameters), prefix, client}.pullAll(t.Context(), images))
	}
	t.Logf("%d kills broke %d pulls; %d objects verified", kills(t), broken, objects)
}

// pullBeside has four clients pull from each proxy, and kills the victim at some
// moment. It returns how many of its clients failed.
func pullBeside(t testing.TB, client *http.Client, images []tagged, victim, other *child) (failed int) {
	t.Helper()
	var wg sync.WaitGroup
	broken := make(chan error, 4)
	for range 4 {
		wg.Go(func() { assert.NoError(t, puller{other.url, prefix, client}.pullAll(t.Context(), images)) })
		wg.Go(func() {
			if err := (puller{victim.url, prefix, client}).pullAll(t.Context(), images); err != nil {
				broken <- err
			}
		})
	}
	timer := time.NewTimer(time.Duration(rand.Int64N(int64(time.Second))))
	defer timer.Stop()
	<-timer.C
	victim.kill()
	wg.Wait()
	return len(broken)
}
