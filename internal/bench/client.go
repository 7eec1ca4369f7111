package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// client is a minimal registry client, so that it costs little time itself.
type client struct {
	*http.Client
	token string // sent as Bearer; "": none
}

func newClient() *client {
	return &client{&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}, ""}
}

var readBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// errEnough is what a writer of get returns to leave before the end.
var errEnough = errors.New("enough")

// fetch is what a client wants: an object, or a range of it.
type fetch struct {
	url   string
	bytes string    // value of the Range header; "": all
	size  int64     // what the answer must have
	into  io.Writer // nil: the content is discarded
}

// get downloads f and checks the length. It returns how long the first byte took.
func (c *client) get(f fetch) (first time.Duration, err error) {
	start := time.Now()
	resp, err := c.open(f.url, f.bytes)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if want := map[bool]int{true: http.StatusOK, false: http.StatusPartialContent}[f.bytes == ""]; resp.StatusCode != want {
		return 0, fmt.Errorf("%s: %s", f.url, resp.Status)
	}
	buf := readBuffers.Get().(*[128 << 10]byte)
	defer readBuffers.Put(buf)
	for got := int64(0); ; {
		n, err := resp.Body.Read(buf[:])
		if got == 0 {
			first = time.Since(start)
		}
		got += int64(n)
		if f.into != nil && n > 0 {
			if _, err := f.into.Write(buf[:n]); err != nil {
				return first, err
			}
		}
		switch {
		case err == io.EOF && got == f.size:
			return first, nil
		case err != nil:
			return first, fmt.Errorf("%s: %w after %d bytes of %d", f.url, err, got, f.size)
		}
	}
}

// accepted is what container engines accept. Some registries hide what is not in it.
const accepted = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*"

func (c *client) open(url, bytes string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accepted)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if bytes != "" {
		req.Header.Set("Range", "bytes="+bytes)
	}
	return c.Do(req)
}

// handshake requests an object, which must be refused, and then a token for repo from the
// registry. It returns a client with that token.
func (c *client) handshake(object, registry, repo string) (*client, error) {
	resp, err := c.open(object, "")
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		return nil, fmt.Errorf("%s: let in without a token: %s", repo, resp.Status)
	}
	resp, err = c.open(registry+"/token?service=registry.test&scope=repository:"+repo+":pull", "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return &client{c.Client, answer.Token}, err
}

// inParallel calls f n times at once.
func inParallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
