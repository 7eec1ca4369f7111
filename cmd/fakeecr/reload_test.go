package main

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// hup has the files read again, and waits for what is said of it.
func (i *instance) hup(t *testing.T, says string) {
	t.Helper()
	before := strings.Count(i.stderr.String(), says)
	require.True(t, i.signal(syscall.SIGHUP))
	require.Eventually(t, func() bool { return strings.Count(i.stderr.String(), says) > before }, 10*time.Second, time.Millisecond, "%s", says)
}

// SIGHUP puts the rules of the file in force, and the credentials of the files.
func TestSIGHUP(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	up.Push("other", "v1", img)
	credentials := write(t, t.TempDir()+"/credentials", "p=me:wrong")
	file := write(t, t.TempDir()+"/config.json", `{"rule": "p=`+up.URL+`"}`)
	i := start(t, "-config", file, "-credential-file", credentials)
	resp, _ := i.get(t, "/v2/p/app/manifests/v1")
	assert.NotEqual(t, 200, resp.StatusCode)

	write(t, credentials, "p=me:"+secret+"\nq=me:"+secret)
	write(t, file, `{"rule": ["p=`+up.URL+`", "q=`+up.URL+`"], "tag-ttl": "1h"}`)
	i.hup(t, "the files have been read again")
	i.pull(t, "q/app", "v1", img)
	assert.Equal(t, 1, up.Count("GET /v2/app/manifests/v1 200"))
	assert.Contains(t, i.stderr.String(), "rules=2")
	assert.Contains(t, i.stderr.String(), "SIGHUP: -tag-ttl has changed, which the next start heeds")

	write(t, file, `{"rule": "q=`+up.URL+`"}`)
	i.hup(t, "the files cannot be used") // there is a credential for p
	write(t, file, `{"rule": `)
	i.hup(t, "the files cannot be used")
	i.pull(t, "p/other", "v1", img)
	i.stop(t)
	assert.Equal(t, 2, strings.Count(i.stderr.String(), "level=ERROR"))
	assert.NotContains(t, i.stderr.String(), secret)
}

// Without files there is nothing to read: the signal does what it does to every program.
func TestSIGHUPWithoutFiles(t *testing.T) {
	i := start(t, "-rule", "p=quay.io")
	assert.False(t, i.signal(syscall.SIGHUP))
}

// A second signal does not wait for what the first one waits for.
func TestASecondSignalCutsOff(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Stall: make(chan struct{}), StallAfter: new(int64(1 << 20))})
	i := start(t, "-rule", "p="+up.URL)
	i.status = exitFailure
	resp, err := http.Get(i.url + "/v2/p/app/blobs/" + img.Layers[0].Digest.String())
	require.NoError(t, err)
	defer resp.Body.Close()
	i.end()
	i.signal(syscall.SIGTERM)
	i.stop(t)
	said := i.stderr.String()
	assert.Contains(t, said, "ending: requests and downloads may take 8s, a second signal cuts them off")
	assert.Contains(t, said, "requests were cut off")
	assert.Contains(t, said, "fakeecr: ended at once: terminated\n")
	assert.Equal(t, 1, up.Count("GET /v2/app/blobs/*"))
}
