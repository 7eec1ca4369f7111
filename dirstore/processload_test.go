//go:build unix

package dirstore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestChildThatServes is the other process of a test, and nothing by itself: a
// registry on 127.0.0.1 until its standard input ends.
func TestChildThatServes(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	var plan childPlan
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(childPlanVar)), &plan))
	s := open(t, dir)
	s.MaxBytes, s.VerifyBlobs = plan.MaxBytes, plan.Verify
	p := newProxy(s, plan.Upstream, plan.Fill, pullthrough.Policy{TagTTL: pullthrough.EveryPull})
	p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
		account, region, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		return pullthrough.Identity{Account: account, Region: region}, nil
	}
	p.OnEvent = func(_ context.Context, e pullthrough.Event) {
		if e.Kind == pullthrough.EventStoreFailed {
			giveUp(e.Err)
		}
	}
	server := httptest.NewServer(p)
	fmt.Println(server.URL)
	_, err := io.Copy(io.Discard, os.Stdin)
	require.NoError(t, err)
	server.Close()
	require.NoError(t, shutDown(context.Background(), p))
	s.WaitForSweep()
	require.NoError(t, s.Close())
}

// serving is a process that serves a directory.
type serving struct {
	t   *testing.T
	url string
	cmd *exec.Cmd
	in  io.Closer
	out io.ReadCloser
}

func serve(t *testing.T, dir string, plan childPlan) *serving {
	t.Helper()
	text, err := json.Marshal(plan)
	require.NoError(t, err)
	p := &serving{t: t, cmd: childOf(t, "TestChildThatServes", dir)}
	p.cmd.Env = append(p.cmd.Env, childPlanVar+"="+string(text))
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	p.out, err = p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = p.cmd.Stdout
	require.NoError(t, p.cmd.Start())
	_, err = fmt.Fscanln(p.out, &p.url)
	require.NoError(t, err)
	return p
}

// end has the process end of its own accord, and well.
func (p *serving) end() {
	p.t.Helper()
	require.NoError(p.t, p.in.Close())
	said, err := io.ReadAll(p.out)
	require.NoError(p.t, err)
	require.NoError(p.t, p.cmd.Wait(), "%s", said)
}

// httpClient pulls from the registry at base as a client does, and checks each byte.
type httpClient struct {
	*http.Client
	base string
}

func newClient(t *testing.T, base string) httpClient {
	transport := &http.Transport{DialContext: pullthroughtest.DialLoopback, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return httpClient{&http.Client{Transport: transport}, base}
}

func (c httpClient) get(ctx context.Context, repo pullthrough.Repo, kind, ref string) (content []byte, mediaType string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v2/"+repo.Name+"/"+kind+"/"+ref, nil)
	if err != nil {
		return nil, "", err
	}
	r.Header.Set("Authorization", repo.Account+" "+repo.Region)
	resp, err := c.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	content, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s of %s: %s: %s", kind, ref, repo.Name, resp.Status, content)
	}
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); err == nil && digest.FromBytes(content) != d || strings.Contains(ref, ":") && string(d) != ref {
		err = fmt.Errorf("%s %s of %s: content of another digest", kind, ref, repo.Name)
	}
	return content, resp.Header.Get("Content-Type"), err
}

// pull pulls an image, and returns what it was.
func (c httpClient) pull(ctx context.Context, repo pullthrough.Repo, ref string) (digest.Digest, error) {
	content, mediaType, err := c.get(ctx, repo, "manifests", ref)
	if err != nil {
		return "", err
	}
	info, err := manifest.Inspect(mediaType, content, manifest.Stored)
	for _, d := range info.Manifests {
		if err == nil {
			_, err = c.pull(ctx, repo, d.Digest.String())
		}
	}
	for _, d := range info.Blobs {
		if err == nil {
			_, _, err = c.get(ctx, repo, "blobs", d.Digest.String())
		}
	}
	return digest.FromBytes(content), err
}
