package handlerstore_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// recorded is a registry that notes what it is asked, and answers as it is told.
type recorded struct {
	asked  []string
	answer func(w http.ResponseWriter, r *http.Request)
}

func (h *recorded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.asked = append(h.asked, r.Method+" "+r.URL.RequestURI())
	if h.answer != nil {
		h.answer(w, r)
	}
}

// byHeader is an Identify by a header of the tests.
func byHeader(r *http.Request) (pullthrough.Identity, error) {
	account := r.Header.Get("X-Account")
	if account == "" {
		return pullthrough.Identity{}, pullthrough.ErrUnauthorized
	}
	return pullthrough.Identity{Account: account}, nil
}

// aroundName is a Name that puts something before and behind.
func aroundName(r pullthrough.Repo) (string, error) {
	if r.Name == "not/yours" {
		return "", errors.New("no")
	}
	return r.Account + "/" + r.Name + "/x", nil
}

func askRegistry(h http.Handler, method, uri, account string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, uri, nil)
	if account != "" {
		r.Header.Set("X-Account", account)
	}
	h.ServeHTTP(w, r)
	return w
}

func TestRegistryMapsEveryNameInARequest(t *testing.T) {
	for _, c := range []struct{ method, uri, want string }{
		{"PUT", "/v2/team/app/manifests/1", "PUT /v2/ann/team/app/x/manifests/1"},
		{"GET", "/v2/team/app/manifests/1", "GET /v2/ann/team/app/x/manifests/1"},
		{"GET", "/v2/bob/app/x/manifests/1", "GET /v2/ann/bob/app/x/x/manifests/1"},
		{"DELETE", "/v2/app/blobs/sha256%3Aabc", "DELETE /v2/ann/app/x/blobs/sha256:abc"},
		{"POST", "/v2/app/blobs/uploads/", "POST /v2/ann/app/x/blobs/uploads/"},
		{"POST", "/v2/app/blobs/uploads/?mount=sha256:1&from=other", "POST /v2/ann/app/x/blobs/uploads/?from=ann%2Fother%2Fx&mount=sha256%3A1"},
		{"POST", "/v2/app/blobs/uploads/?mount=sha256:1&from=Bad", "POST /v2/ann/app/x/blobs/uploads/"},
		{"POST", "/v2/app/blobs/uploads/?mount=sha256:1", "POST /v2/ann/app/x/blobs/uploads/"},
		{"PATCH", "/v2/app/blobs/uploads/5f0c?_state=a%2Fb", "PATCH /v2/ann/app/x/blobs/uploads/5f0c?_state=a%2Fb"},
		{"HEAD", "/v2/app/tags/list?n=1", "HEAD /v2/ann/app/x/tags/list?n=1"},
		{"GET", "/v2/", "GET /v2/"},
	} {
		h := &recorded{}
		s := &handlerstore.Store{Handler: h, Name: aroundName}
		askRegistry(s.Registry(byHeader), c.method, c.uri, "ann")
		assert.Equal(t, []string{c.want}, h.asked)
	}
}

func TestRegistryIsClosedToWhatItCannotMap(t *testing.T) {
	h := &recorded{}
	s := &handlerstore.Store{Handler: h, Name: aroundName}
	registry := s.Registry(byHeader)
	for _, method := range []string{"GET", "PUT", "PATCH", "POST", "DELETE"} {
		for uri, status := range map[string]int{
			"/v2/bob%2Fapp%2Fx/manifests/1": 404, "/v2/x/../bob/app/x/manifests/1": 404, "/v2/bob/app/x/blobs/uploads/a%2Fb": 404, "//v2/bob/app/x/manifests/1": 404,
			"/x/../v2/bob/app/x/blobs/uploads/1": 404, "/v2/apis": 404, "/": 404, "/token": 404, "/v2/Bob/manifests/1": 400, "/v2/not/yours/manifests/1": 400,
		} {
			assert.Equal(t, status, askRegistry(registry, method, uri, "ann").Code, "%s %s", method, uri)
		}
		for _, uri := range []string{"/v2/", "/v2/_catalog", "/v2/app/manifests/1", "/v2/app/blobs/uploads/"} {
			w := askRegistry(registry, method, uri, "")
			assert.Equal(t, 401, w.Code)
			assert.NotEmpty(t, w.Header().Get("WWW-Authenticate"))
		}
	}
	assert.Equal(t, 405, askRegistry(registry, "DELETE", "/v2/_catalog", "ann").Code)
	assert.Empty(t, h.asked)
}

func TestRegistryShowsTheNamesOfTheAccount(t *testing.T) {
	h := &recorded{}
	registry := (&handlerstore.Store{Handler: h, Name: aroundName}).Registry(byHeader)
	for location, want := range map[string]string{
		"/v2/ann/app/x/blobs/uploads/1?a=/v2/ann/app/x/":        "/v2/app/blobs/uploads/1?a=/v2/ann/app/x/",
		"https://r.example/v2/ann/app/x/blobs/uploads/1?_s=%2F": "https://r.example/v2/app/blobs/uploads/1?_s=%2F",
		"uploads/1": "uploads/1",
	} {
		h.answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusAccepted)
		}
		assert.Equal(t, want, askRegistry(registry, "POST", "/v2/app/blobs/uploads/", "ann").Header().Get("Location"))
	}
	h.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://bucket.example/v2/ann/app/x/signed")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
	assert.Equal(t, "https://bucket.example/v2/ann/app/x/signed", askRegistry(registry, "GET", "/v2/app/blobs/sha256:1", "ann").Header().Get("Location"))

	h.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", `</v2/ann/app/x/tags/list?last=b>; rel="next"`)
		_, _ = fmt.Fprint(w, `{"name":"ann/app/x","tags":["a","b"]}`)
	}
	w := askRegistry(registry, "GET", "/v2/app/tags/list", "ann")
	assert.JSONEq(t, `{"name":"app","tags":["a","b"]}`, w.Body.String())
	assert.Equal(t, `</v2/app/tags/list?last=b>; rel="next"`, w.Header().Get("Link"))
}

func TestRegistryShowsTheCatalogOfTheAccount(t *testing.T) {
	pages := map[string]string{"": "ann/aa/x|ann/bb|bob/aa/x", "2": "bob/ann/x|ann/cc/dd/x|anna/ee/x", "3": "ann/ff/x|ann//x|x"}
	h := &recorded{answer: func(w http.ResponseWriter, r *http.Request) {
		page := r.URL.Query().Get("last")
		if next := map[string]string{"": "2", "2": "3"}[page]; next != "" {
			w.Header().Set("Link", `</v2/_catalog?last=`+next+`>; rel="next"`)
		}
		_, _ = fmt.Fprintf(w, `{"repositories":["%s"]}`, strings.ReplaceAll(pages[page], "|", `","`))
	}}
	registry := (&handlerstore.Store{Handler: h, Name: aroundName}).Registry(byHeader)
	assert.JSONEq(t, `{"repositories":["aa","ann"]}`, askRegistry(registry, "GET", "/v2/_catalog", "bob").Body.String())
	w := askRegistry(registry, "GET", "/v2/_catalog?n=1", "ann")
	assert.Len(t, h.asked, 6)
	assert.JSONEq(t, `{"repositories":["aa"]}`, w.Body.String())
	assert.Equal(t, `<http://example.com/v2/_catalog?last=.YWE&n=1>; rel="next"`, w.Header().Get("Link"))
	assert.JSONEq(t, `{"repositories":["cc/dd","ff"]}`, askRegistry(registry, "GET", "/v2/_catalog?last=aa", "ann").Body.String())
	assert.JSONEq(t, `{"repositories":[]}`, askRegistry(registry, "GET", "/v2/_catalog", "eve").Body.String())

	hashed := &handlerstore.Store{Handler: h, Name: func(r pullthrough.Repo) (string, error) { return fmt.Sprintf("%x", r.Account+r.Name), nil }}
	assert.JSONEq(t, `{"repositories":[]}`, askRegistry(hashed.Registry(byHeader), "GET", "/v2/_catalog", "ann").Body.String(), "nothing is shown that is not known to be the account's")
	h.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }
	assert.Equal(t, 403, askRegistry(registry, "GET", "/v2/_catalog", "ann").Code)
}

func TestRegistryOfOneAccount(t *testing.T) {
	h := &recorded{}
	registry := (&handlerstore.Store{Handler: h}).Registry(byHeader)
	askRegistry(registry, "PUT", "/v2/app/manifests/1", "ann")
	assert.Equal(t, 400, askRegistry(registry, "PUT", "/v2/app/manifests/1", "bob").Code, "it is the registry of the first account")
	assert.Equal(t, []string{"PUT /v2/app/manifests/1"}, h.asked)
}
