package conformance_test

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var repo = pullthrough.Repo{Name: "hub/library/alpine"}

// TestADirectoryMovesToABucket: what dirstore wrote is copied file by file, as
// the README says, and a proxy without upstream and the registry serve it.
func TestADirectoryMovesToABucket(t *testing.T) {
	t.Parallel()
	server, images, dir := startServer(t), someImages(6<<20), t.TempDir()
	local, err := dirstore.Open(dir)
	require.NoError(t, err)
	up := newUpstream(t, images)
	p := &pullthrough.Proxy{Store: local, Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}}, SpoolDir: t.TempDir()}
	srv := httptest.NewServer(p)
	defer srv.Close()
	require.NoError(t, puller{srv.URL, prefix, newClient(t)}.pullAll(t.Context(), images))
	require.NoError(t, p.Shutdown(t.Context()))
	require.NoError(t, local.Close())

	parameters := server.bucket(t, "moved")
	driver := open(t, parameters)
	require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Dir(name) == "pullthrough" { // a directory's locks
			return err
		}
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		return driver.PutContent(t.Context(), "/"+name, content)
	}))
	requireSound(t, driver)
	requireServed(t, parameters, images)
}

// TestRedirectsToS3: the client gets the blob from the bucket, without keys.
func TestRedirectsToS3(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	s := diststore.New(open(t, server.bucket(t, "redirect")))
	s.Redirect = true
	content := bytes.Repeat([]byte("layer"), 2<<20) // more than one part
	desc := ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
	require.NoError(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(content)))

	p := &pullthrough.Proxy{Store: s, Rules: pullthrough.StaticRules{}}
	srv := httptest.NewServer(p)
	defer srv.Close()
	client := newClient(t)
	var to []string
	client.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		to = append(to, r.URL.Host)
		return nil
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/v2/"+repo.Name+"/blobs/"+desc.Digest.String(), nil)
	require.NoError(t, err)
	req.Header.Set("Range", "bytes=5-14")
	resp, err := client.Do(req)
	require.NoError(t, err)
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusPartialContent, resp.StatusCode)
	assert.Equal(t, "layerlayer", string(got))
	assert.Equal(t, []string{server.addr}, to)
}

// TestWhatS3RefusesIsAFailure, never a miss, and says nothing of the keys.
func TestWhatS3RefusesIsAFailure(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	parameters := server.bucket(t, "refused")
	secrets := pullthroughtest.NewSecrets(t)
	canary := secrets.New()
	img := image(1, 1, 1000, false)
	m := &pullthrough.Manifest{Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))}, Content: img.Content, Tag: "v1"}
	for name, change := range map[string]func(map[string]any){
		"wrong secret": func(p map[string]any) { p["secretkey"] = canary },
		"wrong key":    func(p map[string]any) { p["accesskey"] = canary },
		"no bucket":    func(p map[string]any) { p["bucket"] = "elsewhere" },
		"no server":    func(p map[string]any) { p["regionendpoint"] = "http://127.0.0.1:1" },
	} {
		t.Run(name, func(t *testing.T) {
			wrong := make(map[string]any)
			for k, v := range parameters {
				wrong[k] = v
			}
			change(wrong)
			s := diststore.New(open(t, wrong))
			_, get := s.Manifest(t.Context(), repo, "v1")
			put := s.PutManifest(t.Context(), repo, m)
			_, blob := s.Blob(t.Context(), repo, img.Layers[0].Digest)
			for _, err := range []error{get, put, blob} {
				require.Error(t, err)
				assert.NotErrorIs(t, err, fs.ErrNotExist)
				secrets.Check(err, err.Error())
				assert.NotContains(t, err.Error(), server.key)
				assert.NotContains(t, err.Error(), server.access)
			}
			t.Log(get)
		})
	}
}
