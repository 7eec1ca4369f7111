package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// client is a minimal registry client, so that it costs little time itself.
type client struct {
	*http.Client
	token string // sent as Bearer; "": none
}

func newClient(token string) *client {
	return &client{&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}, token}
}

var readBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// get downloads url into w and checks the length. If w is nil the content is discarded.
func (c *client) get(url string, size int64, w io.Writer) error {
	resp, err := c.open(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	buf := readBuffers.Get().(*[128 << 10]byte)
	defer readBuffers.Put(buf)
	var got int64
	for {
		n, err := resp.Body.Read(buf[:])
		got += int64(n)
		if w != nil && n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF && got == size:
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w after %d bytes of %d", url, err, got, size)
		}
	}
}

func (c *client) open(url string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return c.Do(req)
}

// handshake requests object, which must be refused, and then a token. It returns a client
// with that token.
func (c *client) handshake(base, repo, object string) (*client, error) {
	resp, err := c.open(base + "/v2/" + repo + "/" + object)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		return nil, fmt.Errorf("%s: let in without a token: %s", repo, resp.Status)
	}
	resp, err = c.open(base + "/token?service=registry.test&scope=repository:" + repo + ":pull")
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
