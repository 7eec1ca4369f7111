package diststore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var errDriver = errors.New("the driver fails")

// steps are a put of each kind, and what must be there once it has succeeded.
type step struct {
	name string
	put  func(ctx context.Context, s *diststore.Store) error
	seen func(t *testing.T, s *diststore.Store) error
}

func steps(size int) []step {
	small, big := noise(1, 1000), noise(2, size)
	m, first := manifestOf(image(1), "v1"), manifestOf(image(2), "v1")
	return []step{
		{"blob", putOf(small), seenBlob(small)},
		{"large blob", putOf(big), seenBlob(big)},
		{"first tag", func(ctx context.Context, s *diststore.Store) error { return s.PutManifest(ctx, repo, first) }, seenTag(first)},
		{"tag that moves", func(ctx context.Context, s *diststore.Store) error { return s.PutManifest(ctx, repo, m) }, seenTag(m)},
	}
}

func putOf(content []byte) func(context.Context, *diststore.Store) error {
	return func(ctx context.Context, s *diststore.Store) error {
		return s.PutBlob(ctx, repo, descriptor(content), bytes.NewReader(content))
	}
}

func seenBlob(content []byte) func(*testing.T, *diststore.Store) error {
	return func(t *testing.T, s *diststore.Store) error {
		b, err := s.Blob(t.Context(), repo, digest.FromBytes(content))
		if err != nil {
			return err
		}
		defer func() { assert.NoError(t, b.Body.Close()) }()
		got, err := io.ReadAll(b.Body)
		assert.NoError(t, err)
		assert.True(t, bytes.Equal(content, got), "a blob that is there is whole")
		return nil
	}
}

func seenTag(want *pullthrough.Manifest) func(*testing.T, *diststore.Store) error {
	return func(t *testing.T, s *diststore.Store) error {
		m, err := s.Manifest(t.Context(), repo, "v1")
		if err == nil && m.Descriptor.Digest != want.Descriptor.Digest {
			return fs.ErrNotExist // it names what it named before
		}
		if err == nil {
			assertStored(t, want, m)
		}
		return err
	}
}

// TestEachCallOfTheDriverMayFail: the put fails or does not, what is seen is whole
// or missing, and the next put heals it. No failure is a miss.
func TestEachCallOfTheDriverMayFail(t *testing.T) {
	sizes := map[string]int{"filesystem": large, "inmemory": 100_000} // it moves them all
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			failures := 0
			for fail := 1; ; fail++ {
				p := &probe{StorageDriver: open(t)}
				s := diststore.New(p)
				calls := 0
				p.fail = func(string, string) error {
					if calls++; calls == fail {
						return errDriver
					}
					return nil
				}
				for _, step := range steps(sizes[name]) {
					if err := step.put(t.Context(), s); err != nil {
						failures++
						assert.ErrorIs(t, err, errDriver)
						assert.NotErrorIs(t, err, fs.ErrNotExist)
						if err := step.seen(t, diststore.New(p.StorageDriver)); err != nil {
							assert.ErrorIs(t, err, fs.ErrNotExist, "%s after call %d failed", step.name, fail)
						}
						require.NoError(t, step.put(t.Context(), s), "%s after call %d failed", step.name, fail)
					}
					require.NoError(t, step.seen(t, diststore.New(p.StorageDriver)), "%s after call %d failed", step.name, fail)
				}
				if calls < fail {
					break // there is no such call any more
				}
			}
			assert.Greater(t, failures, 25)
		})
	}
}

// TestAPutEndsWithItsContext at each call of the driver: it returns the context's
// error and asks for nothing more, but for what takes back what it began.
func TestAPutEndsWithItsContext(t *testing.T) {
	for end := 1; ; end++ {
		p := &probe{StorageDriver: drivers["filesystem"](t)}
		s := diststore.New(p)
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		p.fail = func(op, _ string) error {
			if calls++; calls == end {
				cancel()
			} else if calls > end && op != "delete" && op != "write" { // what is in a buffer is of no use
				assert.Fail(t, "asked after the end", op)
			}
			return nil
		}
		var err error
		for _, step := range steps(large) {
			if err = step.put(ctx, s); err != nil {
				break
			}
		}
		cancel()
		if calls < end {
			require.NoError(t, err)
			return
		}
		if err != nil {
			assert.ErrorIs(t, err, context.Canceled)
		}
		found, err := p.StorageDriver.List(t.Context(), "/pullthrough/uploads")
		if _, missing := errors.AsType[storagedriver.PathNotFoundError](err); !missing {
			require.NoError(t, err)
		}
		assert.Empty(t, found, "an upload stays behind")
	}
}

// TestAFailureIsNoMiss for every method, and the cause can be found.
func TestAFailureIsNoMiss(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.ENOENT, context.DeadlineExceeded, io.ErrUnexpectedEOF} {
		p := &probe{StorageDriver: drivers["inmemory"](t)}
		p.fail = func(string, string) error {
			return storagedriver.Error{DriverName: "test", Detail: fmt.Errorf("odd: %w", cause)}
		}
		s := diststore.New(p)
		d := digest.FromString("layer")
		for name, call := range map[string]func() error{
			"Manifest":     func() error { _, err := s.Manifest(t.Context(), repo, "v1"); return err },
			"by digest":    func() error { _, err := s.Manifest(t.Context(), repo, d.String()); return err },
			"PutManifest":  func() error { return s.PutManifest(t.Context(), repo, manifestOf(image(1), "v1")) },
			"Blob":         func() error { _, err := s.Blob(t.Context(), repo, d); return err },
			"PutBlob":      func() error { return putOf([]byte("layer"))(t.Context(), s) },
			"Tags":         func() error { _, err := s.Tags(t.Context(), repo); return err },
			"Repos":        func() error { _, err := s.Repos(t.Context(), "", ""); return err },
			"RepoExists":   func() error { _, err := s.RepoExists(t.Context(), repo); return err },
			"Referrers":    func() error { _, _, err := s.Referrers(t.Context(), repo, d); return err },
			"PutReferrers": func() error { return s.PutReferrers(t.Context(), repo, d, &ocispec.Index{}, checked) },
			"CreateRepo": func() error {
				return s.CreateRepo(t.Context(), repo, pullthrough.Rule{}, pullthrough.Request{})
			},
		} {
			err := call()
			require.Error(t, err, name)
			assert.NotErrorIs(t, err, fs.ErrNotExist, name)
			if cause != error(syscall.ENOENT) {
				assert.ErrorIs(t, err, cause, name)
			}
		}
	}
}

// TestErrorsHoldNoCredentials: these are texts as the drivers' SDKs make them.
func TestErrorsHoldNoCredentials(t *testing.T) {
	secrets := pullthroughtest.NewSecrets(t)
	canary := secrets.New()
	for _, text := range []string{
		`RequestError: send request failed caused by: Get "https://user:CANARY@bucket.example/docker?X-Amz-Signature=CANARY&X-Amz-Credential=CANARY": EOF`,
		"SignatureDoesNotMatch: <AWSAccessKeyId>CANARY</AWSAccessKeyId><StringToSign>CANARY CANARY</StringToSign>",
		"Authorization: AWS4-HMAC-SHA256 Credential=CANARY/20260101, SignedHeaders=host, Signature=CANARY",
		`oauth2: cannot fetch token: {"access_token": "CANARY", "refresh_token":"CANARY"}`,
		"AccountKey=CANARY==;EndpointSuffix=core.windows.net", "SharedKey account:CANARY", "https://a.blob.core.windows.net/c?sv=1&sig=CANARY",
		"Bearer CANARY was refused", `{"private_key": "-----BEGIN CANARY CANARY"}`, "secretkey: CANARY", "X-Amz-Security-Token: CANARY", "client_secret=CANARY&x=1",
	} {
		p := &probe{StorageDriver: drivers["inmemory"](t)}
		p.fail = func(string, string) error { return errors.New(strings.ReplaceAll(text, "CANARY", canary)) }
		s := diststore.New(p)
		_, err := s.Manifest(t.Context(), repo, "v1")
		require.Error(t, err)
		for err := err; err != nil; err = errors.Unwrap(err) {
			assert.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), canary, text)
		}
		assert.Contains(t, err.Error(), "v1/current/link")
	}
	p := &probe{StorageDriver: drivers["inmemory"](t)}
	const harmless = "SignatureDoesNotMatch: The signature we calculated. status code: 403, request id: 1"
	p.fail = func(string, string) error { return errors.New(harmless) }
	_, err := diststore.New(p).Manifest(t.Context(), repo, "v1")
	assert.ErrorContains(t, err, harmless)
	p.fail = func(string, string) error { return errors.New(strings.Repeat("long\n", 10_000)) }
	_, err = diststore.New(p).Manifest(t.Context(), repo, "v1")
	assert.Less(t, len(err.Error()), 1000)
	assert.NotContains(t, err.Error(), "\n")
}

// TestDamageIsAMissAndHealed: whatever somebody has left in a bucket.
func TestDamageIsAMissAndHealed(t *testing.T) {
	m := manifestOf(image(1), "v1")
	d := m.Descriptor.Digest
	for name, damage := range map[string]map[string]string{
		"content flipped":     {dataFile(d): strings.Replace(string(m.Content), "sha256", "sha257", 1)},
		"content cut":         {dataFile(d): string(m.Content[:100])},
		"content empty":       {dataFile(d): ""},
		"content too large":   {dataFile(d): strings.Repeat(" ", 5<<20)},
		"link empty":          {revisionLink(repo.Name, d): ""},
		"link of another":     {revisionLink(repo.Name, d): image(2).Digest.String()},
		"link is no digest":   {revisionLink(repo.Name, d): "sha256:../../etc/passwd"},
		"link too long":       {revisionLink(repo.Name, d): strings.Repeat("a", 1<<20)},
		"tag is no digest":    {tagLink(repo.Name, "v1"): "<html>"},
		"tag of what is gone": {tagLink(repo.Name, "v1"): digest.FromString("gone").String()},
	} {
		t.Run(name, func(t *testing.T) {
			driver := drivers["inmemory"](t)
			s := diststore.New(driver)
			put(t, s, repo, m)
			for name, content := range damage {
				write(t, driver, name, content)
			}
			s = diststore.New(driver)
			assertNoManifest(t, s, repo, "v1")
			put(t, s, repo, m)
			assertStored(t, m, get(t, s, repo, "v1"))
		})
	}
	for name, damage := range map[string]string{"blob cut": "lay", "blob empty": "", "link broken": "x"} {
		t.Run(name, func(t *testing.T) {
			driver := drivers["inmemory"](t)
			layer := putBlob(t, diststore.New(driver), repo, []byte("layer"))
			if name == "link broken" {
				write(t, driver, layerLink(repo.Name, layer), damage)
				assertNoBlob(t, diststore.New(driver), repo, layer)
			} else {
				write(t, driver, dataFile(layer), damage)
			}
			putBlob(t, diststore.New(driver), repo, []byte("layer"))
			assertBlob(t, diststore.New(driver), repo, []byte("layer"))
		})
	}
	t.Run("sidecar broken", func(t *testing.T) {
		driver := drivers["inmemory"](t)
		s := diststore.New(driver)
		put(t, s, repo, m)
		write(t, driver, strings.TrimSuffix(tagLink(repo.Name, "v1"), "link")+"sha256-"+d.Encoded()+".json", "{")
		assert.Zero(t, get(t, diststore.New(driver), repo, "v1").CheckedAt) // as if it had been pushed
	})
}

// TestAbandonedUploadsAreSwept, a day later, and no others.
func TestAbandonedUploadsAreSwept(t *testing.T) {
	driver := drivers["filesystem"](t)
	name := func(age time.Duration) string {
		return "pullthrough/uploads/" + time.Now().UTC().Add(-age).Format("20060102T150405Z") + "-X"
	}
	old, recent := name(25*time.Hour), name(time.Hour)
	write(t, driver, old, "left behind")
	write(t, driver, recent, "on its way")
	write(t, driver, "pullthrough/uploads/odd", "somebody's")
	putBlob(t, diststore.New(driver), repo, noise(1, large))
	found, err := driver.List(t.Context(), "/pullthrough/uploads")
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"/" + recent, "/pullthrough/uploads/odd"}, found)
}
