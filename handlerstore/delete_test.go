package handlerstore_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// deleting is a registry of tags that answers DELETE with a status.
type deleting struct {
	status int
	tags   map[string]string // contents of manifests
	log    []string
}

func (d *deleting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ref := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	content, tagged := d.tags[ref]
	for _, c := range d.tags {
		if digest.FromString(c).String() == ref {
			content = c
		}
	}
	switch {
	case strings.HasSuffix(r.URL.Path, "/tags/list"):
		names := []string{}
		for _, tag := range []string{"v1", "v2", "v3"} {
			if _, ok := d.tags[tag]; ok {
				names = append(names, `"`+tag+`"`)
			}
		}
		_, _ = fmt.Fprintf(w, `{"name":"hub/a","tags":[%s]}`, strings.Join(names, ","))
	case r.Method == http.MethodDelete:
		d.log = append(d.log, ref)
		if tagged && d.status == http.StatusAccepted {
			delete(d.tags, ref)
		}
		w.WriteHeader(d.status)
	case content == "":
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write([]byte(content))
	}
}

// The registry is asked as the OCI distribution spec says, and its refusals are told apart.
func TestDeletionsAreTheRegistrys(t *testing.T) {
	repo := pullthrough.Repo{Name: "hub/a"}
	for status, want := range map[int]error{
		http.StatusAccepted: nil, http.StatusNotFound: fs.ErrNotExist, http.StatusMethodNotAllowed: errors.ErrUnsupported,
		http.StatusBadRequest: errors.ErrUnsupported, http.StatusNotImplemented: errors.ErrUnsupported,
	} {
		registry := &deleting{status: status}
		s := &handlerstore.Store{Handler: registry}
		assert.ErrorIs(t, s.DeleteImage(t.Context(), repo, "v1"), want, status)
		assert.Equal(t, []string{"v1"}, registry.log)
	}
	err := (&handlerstore.Store{Handler: &deleting{status: http.StatusForbidden}}).DeleteImage(t.Context(), repo, "v1")
	assert.Error(t, err)
	assert.NotErrorIs(t, err, errors.ErrUnsupported)
	assert.NotErrorIs(t, err, fs.ErrNotExist)
}

// With a manifest go the tags that name it, and with a repository all that it lists.
func TestDeletionsOfManifestsAndRepositories(t *testing.T) {
	repo, one, two := pullthrough.Repo{Name: "hub/a"}, `{"schemaVersion":2}`, `{"schemaVersion":2,"x":1}`
	d := digest.FromString(one).String()
	registry := &deleting{status: http.StatusAccepted, tags: map[string]string{"v1": one, "v2": two, "v3": one}}
	s := &handlerstore.Store{Handler: registry}
	assert.NoError(t, s.DeleteImage(t.Context(), repo, d))
	assert.Equal(t, []string{"v1", "v3", d}, registry.log)
	registry.log = nil
	assert.NoError(t, s.DeleteRepo(t.Context(), repo))
	assert.Equal(t, []string{"v2", digest.FromString(two).String()}, registry.log)
	assert.ErrorIs(t, s.DeleteRepo(t.Context(), repo), fs.ErrNotExist)
}
