package conformance_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// screenshots is the directory that tests write screenshots to; "": they take none.
var screenshots = os.Getenv("DEBUGPAGE_SCREENSHOTS")

// browserWait is how long a test with a browser may take: a deadline, nobody waits
// for it.
const browserWait = 2 * time.Minute

// chromium is a tab, and what its console has said.
type chromium struct {
	ctx context.Context

	mu         sync.Mutex
	complaints []string
}

// startChromium skips where Chromium is not installed, except in CI.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err, "install chromium")
		}
		t.Skip("chromium is not installed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), browserWait)
	t.Cleanup(cancel)
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun}
	for _, flag := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	options = append(options, chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)

	c := &chromium{}
	c.ctx, cancel = chromedp.NewContext(ctx)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		assert.NoError(t, chromedp.Cancel(c.ctx), "the end of chromium")
		cancel()
		wg.Wait()
	})
	require.NoError(t, chromedp.Do(c.ctx))
	console := chromedp.Console(c.ctx)
	wg.Go(func() {
		for message, err := range console {
			if err != nil {
				return // it has ended
			}
			c.mu.Lock()
			c.complaints = append(c.complaints, message.Source+" "+message.String())
			c.mu.Unlock()
		}
	})
	return c
}

// said is what stands in the console: violations of the security policy and
// exceptions among it. The page itself writes nothing.
func (c *chromium) said() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.complaints...)
}

func (c *chromium) do(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	require.NoError(t, chromedp.Do(c.ctx, steps...))
}

// eval is the value of the expression, or of the promise that it is.
func eval[T any](t *testing.T, c *chromium, expression string) T {
	t.Helper()
	value, err := chromedp.Run(c.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	require.NoError(t, err, "%s", expression)
	return value
}

// until waits for the expression to become true.
func (c *chromium) until(t *testing.T, expression string) {
	t.Helper()
	if _, err := chromedp.Run(c.ctx, chromedp.Poll[chromedp.Void](expression)); err != nil {
		require.NoError(t, err, "%s in\n%s", expression, eval[string](t, c, "document.body.innerText"))
	}
}

// shoot asserts that nothing stands out of a page of that width, sections may
// scroll below 400, and writes a screenshot of all of it.
func (c *chromium) shoot(t *testing.T, name string, width int64, scheme string) {
	t.Helper()
	c.do(t, chromedp.EmulateViewport(width, 900))
	_, err := chromedp.Call(c.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	require.NoError(t, err)
	assert.LessOrEqual(t, eval[int64](t, c, "document.documentElement.scrollWidth"), width)
	if width >= 400 {
		assert.Zero(t, eval[int](t, c, `[...document.querySelectorAll("section")].filter(s => s.scrollWidth > s.clientWidth).length`))
	}
	if screenshots == "" {
		return
	}
	png, err := chromedp.Run(c.ctx, chromedp.FullScreenshot(100))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(screenshots, name+".png"), png, 0o644))
}

// named are the names that a screen reader is told of what has the role.
func (c *chromium) named(t *testing.T, role string) (names []string) {
	t.Helper()
	tree, err := chromedp.Call(c.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	require.NoError(t, err)
	for _, n := range tree.Nodes {
		if n.Role != nil && string(n.Role.Value) == `"`+role+`"` {
			names = append(names, string(n.Name.Value))
		}
	}
	return names
}
