package handlerstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var _ pullthrough.Store = (*handlerstore.Store)(nil)

func handlerStore(h http.HandlerFunc) *handlerstore.Store {
	return &handlerstore.Store{Handler: h}
}

var smallImage = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})

// manifestOf is img as a proxy puts it.
func manifestOf(img *pullthroughtest.Image, tag string) *pullthrough.Manifest {
	return &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))},
		Content:    img.Content, Tag: tag, CheckedAt: time.Unix(1e9, 0), Origin: "up.example", Source: pullthrough.SourceFill,
	}
}

// calls are all methods of a Store, each as an error.
func calls(ctx context.Context, s pullthrough.Store, repo pullthrough.Repo) map[string]error {
	layer := smallImage.Layers[0]
	_, byTag := s.Manifest(ctx, repo, "v1")
	_, byDigest := s.Manifest(ctx, repo, smallImage.Digest.String())
	_, blob := s.Blob(ctx, repo, layer.Digest)
	return map[string]error{
		"Manifest by tag": byTag, "Manifest by digest": byDigest, "Blob": blob,
		"PutManifest":             s.PutManifest(ctx, repo, manifestOf(smallImage, "v1")),
		"PutManifest without tag": s.PutManifest(ctx, repo, manifestOf(smallImage, "")),
		"PutBlob":                 s.PutBlob(ctx, repo, ocispec.Descriptor{Digest: layer.Digest, Size: layer.Size}, layer.Open()),
	}
}

func TestOnlyNotFoundIsAMiss(t *testing.T) {
	for _, status := range []int{204, 206, 301, 307, 400, 401, 403, 405, 410, 418, 429, 500, 502, 503} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			s := handlerStore(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = w.Write([]byte(`{"errors":[{"code":"TOOMANYREQUESTS"}]}`))
			})
			for what, err := range calls(t.Context(), s, testkit.Repo("a")) {
				if strings.HasPrefix(what, "PutManifest") && status/100 == 2 {
					continue // is what it says
				}
				assert.ErrorContains(t, err, fmt.Sprint(status), what)
				assert.NotErrorIs(t, err, fs.ErrNotExist, what)
			}
		})
	}
	s := handlerStore(http.NotFound)
	for what, err := range calls(t.Context(), s, testkit.Repo("a")) {
		assert.Error(t, err, what)
		assert.Equal(t, !strings.HasPrefix(what, "Put"), errors.Is(err, fs.ErrNotExist), what)
	}
}

func TestPanicsAreErrors(t *testing.T) {
	for name, value := range map[string]any{"a string": "boom", "ErrAbortHandler": http.ErrAbortHandler, "an error": errors.New("boom")} {
		t.Run(name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				s := handlerStore(func(w http.ResponseWriter, _ *http.Request) {
					if late {
						w.WriteHeader(http.StatusOK)
						_, _ = w.Write(smallImage.Content)
					}
					panic(value)
				})
				for what, err := range calls(t.Context(), s, testkit.Repo("a")) {
					assert.ErrorContains(t, err, "handlerstore.Store.Handler panicked", what)
					assert.NotErrorIs(t, err, fs.ErrNotExist, what)
				}
			}
		})
	}
	for what, err := range calls(t.Context(), new(handlerstore.Store), testkit.Repo("a")) {
		assert.ErrorContains(t, err, "handlerstore.Store.Handler is nil", what)
	}
}

func TestNames(t *testing.T) {
	var seen string
	inner := func(w http.ResponseWriter, r *http.Request) { seen = r.URL.Path; http.NotFound(w, r) }
	here := pullthrough.Repo{Account: "111122223333", Region: "us-east-1", Name: "hub/a"}
	ask := func(s *handlerstore.Store, repo pullthrough.Repo) error {
		seen = ""
		_, err := s.Manifest(t.Context(), repo, "v1")
		return err
	}
	refused := func(t *testing.T, err error) {
		t.Helper()
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		assert.NotErrorIs(t, err, fs.ErrNotExist, "a refusal is no miss")
		assert.Empty(t, seen, "the registry is not asked")
	}
	t.Run("without Name the first tenant is the only one", func(t *testing.T) {
		s := handlerStore(inner)
		assert.ErrorIs(t, ask(s, here), fs.ErrNotExist)
		assert.Equal(t, "/v2/hub/a/manifests/v1", seen)
		other := here
		other.Name = "hub/b"
		assert.ErrorIs(t, ask(s, other), fs.ErrNotExist)
		for _, repo := range []pullthrough.Repo{{Account: "444455556666", Region: here.Region, Name: here.Name}, {Account: here.Account, Region: "eu-west-1", Name: here.Name}, {Name: here.Name}} {
			refused(t, ask(s, repo))
			for what, err := range calls(t.Context(), s, repo) {
				assert.ErrorIs(t, err, pullthrough.ErrInvalid, what)
			}
		}
	})
	t.Run("Name says where", func(t *testing.T) {
		s := &handlerstore.Store{Handler: http.HandlerFunc(inner), Name: func(r pullthrough.Repo) (string, error) { return r.Account + "/" + r.Name, nil }}
		assert.ErrorIs(t, ask(s, here), fs.ErrNotExist)
		assert.Equal(t, "/v2/111122223333/hub/a/manifests/v1", seen)
	})
	errNotMine := errors.New("not mine")
	for name, f := range map[string]func(pullthrough.Repo) (string, error){
		"an error":           func(pullthrough.Repo) (string, error) { return "", errNotMine },
		"a panic":            func(pullthrough.Repo) (string, error) { panic("boom") },
		"nothing":            func(pullthrough.Repo) (string, error) { return "", nil },
		"a way out":          func(r pullthrough.Repo) (string, error) { return "../" + r.Name, nil },
		"a query":            func(r pullthrough.Repo) (string, error) { return r.Name + "?x=", nil },
		"a slash at the end": func(r pullthrough.Repo) (string, error) { return r.Name + "/", nil },
	} {
		t.Run("Name returns "+name, func(t *testing.T) {
			err := ask(&handlerstore.Store{Handler: http.HandlerFunc(inner), Name: f}, here)
			refused(t, err)
			if name == "an error" {
				assert.ErrorIs(t, err, errNotMine)
			}
		})
	}
	t.Run("what is no name or reference", func(t *testing.T) {
		s := handlerStore(inner)
		for _, bad := range []string{"", "A", "a/../b", "a?b", "a//b", "a/"} {
			refused(t, ask(s, pullthrough.Repo{Name: bad}))
		}
		for _, ref := range []string{"", "a/b", "..", "sha256:12", "v1?x"} {
			_, err := s.Manifest(t.Context(), here, ref)
			refused(t, err)
		}
		m := manifestOf(smallImage, "sha256:"+smallImage.Digest.Encoded())
		refused(t, s.PutManifest(t.Context(), here, m))
	})
}

func TestManifestsAreLookedAt(t *testing.T) {
	content := smallImage.Content
	sha512 := digest.SHA512.FromBytes(content)
	for name, tc := range map[string]struct {
		ref     string
		header  map[string]string
		body    []byte
		digest  digest.Digest // "": refused
		isError error
	}{
		"by tag, with its digest":       {"v1", map[string]string{"Docker-Content-Digest": sha512.String()}, content, sha512, nil},
		"by tag, with no digest":        {"v1", nil, content, smallImage.Digest, nil},
		"by tag, with another's digest": {"v1", map[string]string{"Docker-Content-Digest": digest.FromString("x").String()}, content, "", pullthrough.ErrDigest},
		"by tag, the beginning":         {"v1", map[string]string{"Docker-Content-Digest": smallImage.Digest.String()}, content[:100], "", pullthrough.ErrDigest},
		"by tag, too short":             {"v1", map[string]string{"Content-Length": "1000"}, content[:100], "", io.ErrUnexpectedEOF},
		"by tag, with a digest of ours": {"v1", map[string]string{"Docker-Content-Digest": "md5:abc"}, content, smallImage.Digest, nil},
		"by digest":                     {smallImage.Digest.String(), nil, content, smallImage.Digest, nil},
		"by sha512":                     {sha512.String(), nil, content, sha512, nil},
		"by digest, other content":      {smallImage.Digest.String(), nil, []byte("{}"), "", pullthrough.ErrDigest},
		"by digest, a page":             {smallImage.Digest.String(), map[string]string{"Content-Type": "text/html"}, []byte("<html>"), "", pullthrough.ErrDigest},
		"a type with parameters":        {"v1", map[string]string{"Content-Type": smallImage.MediaType + "; charset=utf-8"}, content, smallImage.Digest, nil},
		"no type":                       {"v1", map[string]string{"Content-Type": ""}, content, smallImage.Digest, nil},
		"no type and no manifest":       {"v1", map[string]string{"Content-Type": ""}, []byte("<html>"), "", nil},
		"more than a manifest can have": {"v1", nil, make([]byte, 4<<20+1), "", pullthrough.ErrTooLarge},
		"just as much as one can have":  {"v1", nil, make([]byte, 4<<20), digest.FromBytes(make([]byte, 4<<20)), nil},
		"a body in a thousand pieces":   {"v1", map[string]string{"X-Pieces": "1"}, content, smallImage.Digest, nil},
		"early hints before the answer": {"v1", map[string]string{"X-Hints": "1"}, content, smallImage.Digest, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := handlerStore(func(w http.ResponseWriter, r *http.Request) {
				assert.Contains(t, r.Header.Get("Accept"), ocispec.MediaTypeImageIndex)
				w.Header().Set("Content-Type", smallImage.MediaType)
				for key, value := range tc.header {
					w.Header().Set(key, value)
				}
				if w.Header().Get("X-Hints") != "" {
					w.WriteHeader(http.StatusEarlyHints)
				}
				if w.Header().Get("X-Pieces") == "" {
					_, _ = w.Write(tc.body)
					return
				}
				for i := range tc.body {
					_, _ = w.Write(tc.body[i : i+1])
				}
			})
			m, err := s.Manifest(t.Context(), testkit.Repo("a"), tc.ref)
			if tc.digest == "" {
				require.Error(t, err)
				assert.NotErrorIs(t, err, fs.ErrNotExist)
				if tc.isError != nil {
					assert.ErrorIs(t, err, tc.isError)
				}
				return
			}
			require.NoError(t, err)
			assert.Equal(t, ocispec.Descriptor{MediaType: smallImage.MediaType, Digest: tc.digest, Size: int64(len(tc.body))}, m.Descriptor)
			assert.Equal(t, string(tc.body), string(m.Content))
			assert.Zero(t, m.CheckedAt, "the registry knows of no check")
			assert.Empty(t, m.Origin)
		})
	}
}

// tagged is a registry of one manifest, which whoever has the registry may change.
type tagged struct {
	img  *pullthroughtest.Image
	puts []string
	deny int // status of pushes; 0: taken
}

func (g *tagged) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPut:
		g.puts = append(g.puts, r.URL.Path+" "+r.Header.Get("Content-Type"))
		if g.deny != 0 {
			w.WriteHeader(g.deny)
			return
		}
		if g.img != nil {
			w.Header().Set("Docker-Content-Digest", g.img.Digest.String())
		}
		w.WriteHeader(http.StatusCreated)
	case g.img == nil:
		http.NotFound(w, r)
	default:
		w.Header().Set("Content-Type", g.img.MediaType)
		_, _ = w.Write(g.img.Content)
	}
}

// What the registry does not keep is remembered, as long as it is true.
func TestRemembersChecks(t *testing.T) {
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	g := &tagged{img: smallImage}
	s := &handlerstore.Store{Handler: g}
	want := manifestOf(smallImage, "v1")
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), want))
	assert.Equal(t, []string{"/v2/hub/a/manifests/v1 " + smallImage.MediaType}, g.puts, "one push, by tag")
	known := func(checked time.Time, origin string) {
		t.Helper()
		m, err := s.Manifest(t.Context(), testkit.Repo("a"), "v1")
		require.NoError(t, err)
		assert.True(t, checked.Equal(m.CheckedAt), m.CheckedAt)
		assert.Equal(t, origin, m.Origin)
	}
	known(want.CheckedAt, "up.example")

	again := *want
	again.Source, again.CheckedAt = pullthrough.SourceRevalidated, want.CheckedAt.Add(time.Hour)
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), &again))
	assert.Len(t, g.puts, 1, "a check pushes nothing")
	known(again.CheckedAt, "up.example")

	g.img = other // somebody has pushed
	known(time.Time{}, "")
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), &again))
	known(time.Time{}, "")
	pushed := manifestOf(other, "v1")
	pushed.Source, pushed.Origin = pullthrough.SourceRevalidated, ""
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), pushed))
	known(pushed.CheckedAt, "")
	assert.Len(t, g.puts, 1)

	g.img = nil // somebody has deleted it
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), &again), "what upstream has confirmed is pushed again")
	assert.Len(t, g.puts, 2)

	g.img = smallImage
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), want))
	for i := range 17 << 10 {
		n := manifestOf(smallImage, fmt.Sprint("t", i))
		n.Origin = "" // nothing is remembered by digest
		require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), n))
	}
	known(time.Time{}, "") // it is bounded
}

func TestRefusedPushes(t *testing.T) {
	for status, kind := range map[int]error{409: pullthrough.ErrImmutable, 412: pullthrough.ErrImmutable, 400: nil, 404: nil, 500: nil} {
		s := &handlerstore.Store{Handler: &tagged{img: smallImage, deny: status}}
		err := s.PutManifest(t.Context(), testkit.Repo("a"), manifestOf(smallImage, "v1"))
		assert.ErrorContains(t, err, fmt.Sprint(status))
		assert.NotErrorIs(t, err, fs.ErrNotExist)
		assert.Equal(t, kind != nil, errors.Is(err, pullthrough.ErrImmutable), "%d", status)
		err = s.PutManifest(t.Context(), testkit.Repo("a"), manifestOf(smallImage, ""))
		assert.Error(t, err)
		assert.NotErrorIs(t, err, pullthrough.ErrImmutable, "there is no tag")
	}
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	s := &handlerstore.Store{Handler: &tagged{img: other}}
	assert.ErrorIs(t, s.PutManifest(t.Context(), testkit.Repo("a"), manifestOf(smallImage, "v1")), pullthrough.ErrDigest, "the registry makes something else of it")
	wrong := manifestOf(smallImage, "v1")
	wrong.Content = other.Content
	g := &tagged{img: other}
	assert.ErrorIs(t, (&handlerstore.Store{Handler: g}).PutManifest(t.Context(), testkit.Repo("a"), wrong), pullthrough.ErrDigest)
	assert.Empty(t, g.puts, "what is wrong is not pushed")
}

// A registry that gives up with its client says 404, or what it likes.
func TestContexts(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"not found": http.NotFound,
		"a panic":   func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a failure": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
	} {
		t.Run(name, func(t *testing.T) {
			for i := range 6 { // each of the calls
				ctx, cancel := context.WithCancel(t.Context())
				n := 0
				s := handlerStore(func(w http.ResponseWriter, r *http.Request) {
					if n++; n == 1 {
						cancel()
					}
					answer(w, r)
				})
				layer := smallImage.Layers[0]
				var err error
				switch i {
				case 0:
					_, err = s.Manifest(ctx, testkit.Repo("a"), "v1")
				case 1:
					_, err = s.Blob(ctx, testkit.Repo("a"), layer.Digest)
				case 2:
					err = s.PutManifest(ctx, testkit.Repo("a"), manifestOf(smallImage, "v1"))
				case 3:
					err = s.PutManifest(ctx, testkit.Repo("a"), manifestOf(smallImage, ""))
				case 4:
					err = s.PutBlob(ctx, testkit.Repo("a"), ocispec.Descriptor{Digest: layer.Digest, Size: layer.Size}, layer.Open())
				default:
					m := manifestOf(smallImage, "v1")
					m.Source = pullthrough.SourceRevalidated
					err = s.PutManifest(ctx, testkit.Repo("a"), m)
				}
				assert.ErrorIs(t, err, context.Canceled, "call %d", i)
				assert.NotErrorIs(t, err, fs.ErrNotExist, "call %d", i)
				assert.Equal(t, 1, n, "nothing more is asked")
				cancel()
			}
		})
	}
}

func TestARepositoryExistsThatTheRegistryListsTagsOf(t *testing.T) {
	for status, c := range map[int]struct{ exists, fails bool }{
		200: {exists: true}, 404: {}, 401: {}, 405: {}, 501: {}, 500: {fails: true}, 503: {fails: true},
	} {
		asked := ""
		s := handlerStore(func(w http.ResponseWriter, r *http.Request) {
			asked = r.Method + " " + r.URL.Path
			w.WriteHeader(status)
		})
		exists, err := s.RepoExists(t.Context(), testkit.Repo("a"))
		assert.Equal(t, c.exists, exists, status)
		assert.Equal(t, c.fails, err != nil, status)
		assert.Equal(t, "GET /v2/hub/a/tags/list", asked)
		_, err = s.RepoExists(t.Context(), pullthrough.Repo{Account: "another", Name: "hub/a"})
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	}
}

// What is missing of a repository of the registry's is an image, and no name, also where no rule covers it.
func TestARepositoryOfTheRegistryLacksAnImageAndNoName(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store = handlerStore(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/mine/tags/list" {
				w.WriteHeader(http.StatusNotFound)
			}
		})
	})
	testkit.AssertOCI(t, f.Get(t, "/v2/mine/manifests/2"), 404, "MANIFEST_UNKNOWN")
	testkit.AssertOCI(t, f.Get(t, "/v2/mine/blobs/"+smallImage.Layers[0].Digest.String()), 404, "BLOB_UNKNOWN")
	testkit.AssertOCI(t, f.Get(t, "/v2/yours/manifests/2"), 404, "NAME_UNKNOWN")
	assert.Empty(t, f.Up.Log())
}
