package history_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// read asks for a document. status is 0 where there was no answer.
func (w *world) read(method, url string, tenant int, header http.Header, body string) (status int, content []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	start := time.Now()
	resp, _, err := w.send(ctx, method, url, tenant, header, []byte(body))
	if err == nil {
		status = resp.StatusCode
		content, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it has been read
	}
	w.judgeTime(url, start)
	if err != nil {
		w.checkNoFault(url, fmt.Sprintf("no answer: %v", err))
		return 0, nil
	}
	w.secrets.Check(string(content))
	return status, content
}

// known are the tags that a repository can have.
var known = append(slices.Clone(tags), "mine")

// list asks for tags or repositories. Both tell only what is the tenant's.
func (w *world) list(one wish) {
	if one.kind == listTags {
		status, content := w.read(http.MethodGet, "/v2/"+one.repo+"/tags/list", one.tenant, nil, "")
		var doc struct{ Tags []string }
		if status == http.StatusOK && json.Unmarshal(content, &doc) == nil {
			for _, tag := range doc.Tags {
				w.must(slices.Contains(known, tag), noLeak, one.repo, "a list of tags has %q", tag)
			}
		}
		return
	}
	status, content := w.read(http.MethodGet, "/v2/_catalog", one.tenant, nil, "")
	var doc struct{ Repositories []string }
	if status == http.StatusOK && json.Unmarshal(content, &doc) == nil {
		for _, repo := range doc.Repositories {
			foreign := w.tenants() == 2 && strings.Contains(repo, ownSecret(1-one.tenant))
			w.must(!foreign, noLeak, everything, "the catalog of %s has %q", accounts[one.tenant], repo)
		}
	}
}

// listReferrers asks for what refers to the first edition of a tag.
func (w *world) listReferrers(one wish, h home) {
	subject := w.model.editions[h][tags[0]][0].Digest
	status, content := w.read(http.MethodGet, "/v2/"+one.repo+"/referrers/"+subject.String(), one.tenant, nil, "")
	var doc struct {
		Manifests []struct{ Digest digest.Digest }
	}
	switch {
	case status == http.StatusOK && json.Unmarshal(content, &doc) == nil:
		for _, m := range doc.Manifests {
			n := name{place{one.tenant, one.repo}, m.Digest.String()}
			w.must(w.model.mayHave(n), noLeak, n.String(), "a list of referrers has %s", m.Digest)
		}
	case status >= 500, status == http.StatusTooManyRequests:
		w.checkNoFault(one.repo, fmt.Sprintf("a list of referrers is answered %d: %s", status, content))
	}
}

// askControlPlane asks Amazon ECR's API about a repository.
func (w *world) askControlPlane(one wish) {
	if w.catalog == nil {
		return
	}
	op := []string{"DescribeImages", "ListImages", "BatchGetImage"}[one.pick%3]
	body := map[string]any{"repositoryName": one.repo}
	if op == "BatchGetImage" {
		body["imageIds"] = []map[string]string{{"imageTag": one.tag}}
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings
	}
	header := http.Header{"X-Amz-Target": {"AmazonEC2ContainerRegistry_V20150921." + op}, "Content-Type": {"application/x-amz-json-1.1"}}
	status, content := w.read(http.MethodPost, "/", one.tenant, header, string(b))
	w.note(one.repo, "%s: %d %.200s", op, status, content)
	for _, d := range digestsIn(content) {
		n := name{place{one.tenant, one.repo}, d}
		w.must(w.model.mayHave(n), noLeak, n.String(), "%s tells of %s", op, d)
	}
	if status >= 500 {
		w.checkNoFault(one.repo, fmt.Sprintf("%s is answered %d: %s", op, status, content))
	}
}

// digestsIn are the digests of images that an answer of the control plane names.
func digestsIn(content []byte) (all []string) {
	type image struct {
		ImageDigest string
		ImageID     struct{ ImageDigest string } `json:"imageId"`
	}
	var doc struct {
		ImageDetails, ImageIDs, Images []image
	}
	if json.Unmarshal(content, &doc) != nil {
		return nil
	}
	for _, i := range slices.Concat(doc.ImageDetails, doc.ImageIDs, doc.Images) {
		for _, d := range []string{i.ImageDigest, i.ImageID.ImageDigest} {
			if d != "" {
				all = append(all, d)
			}
		}
	}
	return all
}

// askPage asks the debug page, and the proxy itself, what goes on.
func (w *world) askPage(one wish) {
	url := []string{"/debug/pullthrough?format=json", "/debug/pullthrough/metrics", "/debug/pullthrough?format=html"}[one.pick%3]
	status, content := w.read(http.MethodGet, url, one.tenant, nil, "")
	w.must(status == http.StatusOK || status == 0, answersMean, everything, "%s: %d %.200s", url, status, content)
	for _, d := range w.proxy().Downloads() {
		n := name{placeOf(d.Repo), d.Digest.String()}
		w.must(w.model.mayHave(n), noLeak, n.String(), "a download of %s", d.Digest)
	}
}
