// Package controlplane is a fake AWS that has only the JSON API of Amazon ECR. Its images
// are JSON state without layers. It has no registry API, and other services have paths
// under /v2/. emulator.go is the emulator without a pull through cache, except for the
// lines marked "new". pullthrough.go is the rest of the pull through cache.
package controlplane

import (
	"encoding/json"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// Emulator is the fake AWS. Make one with New. It is safe for concurrent use.
type Emulator struct {
	accountID, region string
	prefixes          map[string]http.Handler // services by the first part of the path
	s3                *http.ServeMux          // everything else

	mu    sync.RWMutex
	state state
	saved []byte // state as JSON, written on every change

	proxy *pullthrough.Proxy // new
}

type state struct {
	Repositories map[string]*repository `json:"repositories"`
	Rules        []cacheRule            `json:"pullThroughCacheRules"`
}

type repository struct {
	Images map[string]*image   `json:"images"` // by digest
	Tags   map[string]imageTag `json:"tags"`

	layers map[string][]byte // new; by digest, and not part of the JSON
}

type image struct {
	ImageDigest            string    `json:"imageDigest"`
	ImageManifest          string    `json:"imageManifest"`
	ImageManifestMediaType string    `json:"imageManifestMediaType"`
	ImagePushedAt          time.Time `json:"imagePushedAt"`
	Origin                 string    `json:"origin"` // new: the upstream registry that it came from
}

type imageTag struct {
	ImageDigest string    `json:"imageDigest"`
	CheckedAt   time.Time `json:"checkedAt"` // new: when upstream confirmed the tag
	Origin      string    `json:"origin"`    // new: the upstream registry that it came from
}

type cacheRule struct {
	EcrRepositoryPrefix string `json:"ecrRepositoryPrefix"`
	UpstreamRegistryURL string `json:"upstreamRegistryUrl"`
	CredentialARN       string `json:"credentialArn,omitempty"`
}

// ServeHTTP is the router. It cleans paths and selects the service by the path's prefix.
func (e *Emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.Path == "/" {
		e.api(w, r)
		return
	}
	r.URL.Path, r.URL.RawPath = path.Clean(r.URL.Path), "" // "/v2/" is "/v2" from here on
	if pullthrough.IsRegistryRequest(r) {                  // new
		e.proxy.ServeHTTP(w, r) // new
		return                  // new
	} // new
	prefix, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if service, ok := e.prefixes[prefix]; ok {
		service.ServeHTTP(w, r)
		return
	}
	e.s3.ServeHTTP(w, r)
}

// route makes the other services. They need two muxes: a ServeMux panics if it gets both
// "GET /v2/" and S3's "HEAD /{bucket}/{key...}".
func (e *Emulator) route() {
	apiGateway := http.NewServeMux()
	apiGateway.Handle("/v2/apis", answer("API Gateway", "apis"))
	apiGateway.Handle("/v2/apis/{apiId}", answer("API Gateway", "api"))
	apiGateway.Handle("/v2/tags/{arn...}", answer("API Gateway", "tags"))
	apiGateway.Handle("/v2/email/", answer("SES", "email"))
	e.prefixes = map[string]http.Handler{"v2": apiGateway}
	e.s3 = http.NewServeMux()
	e.s3.Handle("GET /{bucket}/{key...}", answer("S3", "object"))
	e.s3.Handle("HEAD /{bucket}/{key...}", answer("S3", "object"))
}

// answer returns a handler that stands for another service.
func answer(service, what string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Service", service)
		_, _ = io.WriteString(w, what)
	}
}

// api is ECR's JSON API.
func (e *Emulator) api(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	switch {
	case err != nil:
		refuse(w, "SerializationException", "")
	case op == "CreatePullThroughCacheRule":
		e.createRule(w, body)
	case op == "BatchGetImage":
		e.batchGetImage(w, body)
	default:
		refuse(w, "UnknownOperationException", "")
	}
}

func (e *Emulator) createRule(w http.ResponseWriter, body []byte) {
	var in cacheRule
	if err := json.Unmarshal(body, &in); err != nil {
		refuse(w, "SerializationException", err.Error())
		return
	}
	if err := in.rule().Validate(e.accountID, e.region); err != nil { // new: ECR's truth table
		exception, _, message := pullthrough.AWS(err, "CreatePullThroughCacheRule") // new
		refuse(w, exception, message)                                               // new
		return                                                                      // new
	} // new
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state.Rules = append(e.state.Rules, in)
	e.save()
	_ = json.NewEncoder(w).Encode(in)
}

// batchGetImage is BatchGetImage for one tag.
func (e *Emulator) batchGetImage(w http.ResponseWriter, body []byte) {
	var in struct {
		RepositoryName string `json:"repositoryName"`
		ImageIDs       []struct {
			ImageTag string `json:"imageTag"`
		} `json:"imageIds"`
	}
	if err := json.Unmarshal(body, &in); err != nil || len(in.ImageIDs) != 1 {
		refuse(w, "InvalidParameterException", "")
		return
	}
	var out struct {
		Images []*image `json:"images"`
	}
	if img, _ := e.image(in.RepositoryName, in.ImageIDs[0].ImageTag); img != nil {
		out.Images = append(out.Images, img)
	}
	_ = json.NewEncoder(w).Encode(out)
}

func refuse(w http.ResponseWriter, exception, message string) {
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": exception, "message": message})
}

// image returns the image that a tag or a digest names, and the tag; nil if there is none.
func (e *Emulator) image(name, ref string) (*image, imageTag) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	repo := e.state.Repositories[name]
	if repo == nil {
		return nil, imageTag{}
	}
	if t, ok := repo.Tags[ref]; ok {
		return repo.Images[t.ImageDigest], t
	}
	return repo.Images[ref], imageTag{}
}

// repository returns the repository and makes it if need be. The caller holds e.mu.
func (e *Emulator) repository(name string) *repository {
	repo := e.state.Repositories[name]
	if repo == nil {
		repo = &repository{Images: map[string]*image{}, Tags: map[string]imageTag{}}
		e.state.Repositories[name] = repo
	}
	return repo
}

// save stands for writing a file. The caller holds e.mu.
func (e *Emulator) save() { e.saved, _ = json.Marshal(e.state) }

// Saved returns the state as JSON, for New.
func (e *Emulator) Saved() []byte {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.saved
}
