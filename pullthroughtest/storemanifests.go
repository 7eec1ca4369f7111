package pullthroughtest

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

var manifestChecks = []storeCheck{
	{name: "what was not put is a miss", rule: ruleMiss, run: checkMisses},
	{name: "an image comes back by tag and by digest", rule: ruleLookUp, run: checkImage},
	{name: "manifests of every kind come back byte for byte", rule: ruleContent, run: checkKinds},
	{name: "what is known of a manifest comes back", rule: ruleLookUp, run: checkKnown},
	{name: "a manifest needs no tag", rule: ruleLookUp, run: checkUntagged},
	{name: "puts can be repeated", rule: ruleIdempotent, run: checkRepeated},
	{name: "what was returned does not change", rule: ruleUnchanged, run: checkReturned},
	{name: "what is put is not changed", rule: ruleArgument, run: checkArguments},
}

func checkMisses(s *storeTest) {
	repo, img, other := storeRepo("misses"), storeImage(1), storeImage(2)
	miss := func(repo pullthrough.Repo, img *Image, why string) {
		s.Helper()
		s.wantNoManifest(repo, img.Digest.String(), why)
		for _, b := range img.Blobs() {
			s.wantNoBlob(repo, b.Digest, why)
		}
	}
	s.wantNoManifest(repo, "v1", "before anything was put")
	miss(repo, img, "before anything was put")
	s.put(repo, img, "v1")
	for _, tag := range []string{"v2", "v", "v1.0", "latest"} {
		s.wantNoManifest(repo, tag, "when only the tag v1 was put")
	}
	miss(repo, other, "when only another image was put")
	s.wantNoManifest(repo, img.Layers[0].Digest.String(), "since a layer is no manifest")
	s.wantNoManifest(storeRepo("misses-too"), "v1", "in another repository")
	miss(storeRepo("misses-too"), img, "in another repository")
	s.wantNoManifest(storeRepo("misses/below"), "v1", "in a repository below")
}

func checkImage(s *storeTest) {
	repo, img := storeRepo("image"), NewIndex(storeImage(3), storeImage(4))
	s.put(repo, img, "v1")
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, "v1"))
	for _, child := range img.Children {
		s.wantManifest(repo, child.Digest.String(), manifestOf(child, ""))
		for _, b := range child.Blobs() {
			s.wantBlob(repo, b.Digest, blobContent(b))
		}
	}
}

// kinds returns manifests that every Store must accept, and some that it may refuse.
func kinds() (all, some map[string]*Image) {
	docker := NewImage(ImageOptions{Seed: 5, Docker: true})
	all = map[string]*Image{
		"OCI image":         storeImage(5),
		"Docker image":      docker,
		"OCI index":         NewIndex(storeImage(5), storeImage(6)),
		"Docker list":       NewIndex(docker),
		"artifact":          NewImage(ImageOptions{Seed: 7, ArtifactType: "application/vnd.example.thing", Subject: storeImage(5)}),
		"odd white space":   indent(storeImage(8)),
		"two layers, alike": repeatLayers(storeImage(9)),
	}
	some = map[string]*Image{
		"sha512":              NewImage(ImageOptions{Seed: 10, Algorithm: digest.SHA512}),
		"OCI artifact":        bareManifest("application/vnd.oci.artifact.manifest.v1+json", `{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}`),
		"a type of its own":   bareManifest("application/vnd.example.thing.v1+json", `{"a" : 1e2 , "b":"\u0000<&>\u2028"}`),
		"what is no document": bareManifest(ocispec.MediaTypeImageManifest, "\x00\xff{"),
	}
	return all, some
}

// bareManifest returns a manifest without blobs.
func bareManifest(mediaType, content string) *Image {
	return &Image{MediaType: mediaType, Digest: digest.FromString(content), Content: []byte(content)}
}

// indent returns img with unusual white space in its manifest.
func indent(img *Image) *Image {
	var b bytes.Buffer
	if err := json.Indent(&b, img.Content, " ", "\t"); err != nil {
		panic(err) // NewImage makes JSON
	}
	odd := *img
	odd.Content = append(b.Bytes(), "\r\n \n"...)
	odd.Digest = digest.FromBytes(odd.Content)
	return &odd
}

// repeatLayers returns img with its layers listed twice.
func repeatLayers(img *Image) *Image {
	var m ocispec.Manifest
	if err := json.Unmarshal(img.Content, &m); err != nil {
		panic(err) // NewImage makes JSON
	}
	m.Layers = append(m.Layers, m.Layers...)
	double := *img
	double.Content = marshal(m)
	double.Digest = digest.FromBytes(double.Content)
	return &double
}

func checkKinds(s *storeTest) {
	repo := storeRepo("kinds")
	all, some := kinds()
	s.put(repo, storeImage(5), "") // the artifact's subject
	for name, img := range all {
		if err := s.offer(repo, img, "v1"+img.Digest.Encoded()[:8]); err != nil {
			s.Errorf("%s: put failed: %v", name, err)
		}
	}
	for name, img := range some {
		tag := "v1" + img.Digest.Encoded()[:8]
		if err := s.offer(repo, img, tag); err != nil {
			s.Logf("%s is refused, and so would be fetched for every pull: %v", name, err)
			s.wantRefused(repo, img, tag)
			continue
		}
		all[name] = img
	}
	for _, img := range all {
		tag := "v1" + img.Digest.Encoded()[:8]
		s.wantManifest(repo, tag, manifestOf(img, tag))
		s.wantManifest(repo, img.Digest.String(), manifestOf(img, tag))
	}
}

// wantRefused checks that nothing is kept of a manifest that was refused. The
// Store may refuse the look-up too.
func (s *storeTest) wantRefused(repo pullthrough.Repo, img *Image, tag string) {
	s.Helper()
	for _, ref := range []string{tag, img.Digest.String()} {
		if _, err := s.store.Manifest(s.Context(), repo, ref); err == nil {
			s.under(ruleWhole).Errorf("Manifest(%s, %s) is there, and PutManifest has failed", repo.Name, ref)
		}
	}
}

func checkKnown(s *storeTest) {
	repo, img := storeRepo("known"), storeImage(11)
	s.put(repo, img, "v1")
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, "v1"))

	local := manifestOf(storeImage(12), "pushed-here")
	local.CheckedAt, local.Origin = time.Time{}, ""
	for _, b := range storeImage(12).Blobs() {
		s.mustPutBlob(repo, blobContent(b))
	}
	s.putManifest(repo, local)
	s.wantManifest(repo, "pushed-here", local)
	s.wantManifest(repo, local.Descriptor.Digest.String(), local)
}

func checkUntagged(s *storeTest) {
	repo, img := storeRepo("untagged"), storeImage(13)
	s.put(repo, img, "")
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
	for _, ref := range []string{"latest", img.Digest.Encoded()} {
		s.wantNoManifest(repo, ref, "when a manifest was put without a tag")
	}
	s.put(repo, img, "v1")
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	s.put(repo, img, "") // as in a pull by digest
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
}

func checkRepeated(s *storeTest) {
	repo, img := storeRepo("repeated"), NewIndex(storeImage(14), storeImage(15))
	for range 3 {
		s.put(repo, img, "v1")
		s.wantManifest(repo, "v1", manifestOf(img, "v1"))
		for _, child := range img.Children {
			s.wantManifest(repo, child.Digest.String(), manifestOf(child, ""))
			for _, b := range child.Blobs() {
				s.wantBlob(repo, b.Digest, blobContent(b))
			}
		}
	}
}

func checkReturned(s *storeTest) {
	repo, img, next := storeRepo("returned"), storeImage(16), storeImage(17)
	s.put(repo, img, "v1")
	refs := []string{"v1", img.Digest.String()}
	var returned []*pullthrough.Manifest
	var before []pullthrough.Manifest
	for _, ref := range refs {
		m := s.manifest(repo, ref)
		returned, before = append(returned, m), append(before, snapshot(m))
	}
	again := manifestOf(img, "v1")
	again.CheckedAt, again.Source = storeTime.Add(time.Hour), pullthrough.SourceRevalidated
	s.putManifest(repo, again)
	second := manifestOf(img, "v2")
	second.CheckedAt, second.Origin = storeTime.Add(2*time.Hour), "other.example"
	s.putManifest(repo, second)
	s.move(repo, next, "v1")
	for i, m := range returned {
		if !reflect.DeepEqual(*m, before[i]) {
			s.Errorf("what Manifest(%s, %s) returned has changed afterwards", repo.Name, refs[i])
		}
	}
}

// snapshot returns a copy of m with its own content.
func snapshot(m *pullthrough.Manifest) pullthrough.Manifest {
	c := *m
	c.Content = slices.Clone(m.Content)
	return c
}

func checkArguments(s *storeTest) {
	repo, img, next := storeRepo("arguments"), storeImage(18), storeImage(19)
	s.put(repo, img, "v0")
	var puts []*pullthrough.Manifest
	var before []pullthrough.Manifest
	put := func(m *pullthrough.Manifest) {
		s.Helper()
		puts, before = append(puts, m), append(before, snapshot(m))
		s.putManifest(repo, m)
	}
	put(manifestOf(img, "v1"))
	put(manifestOf(img, ""))
	again := manifestOf(img, "v1")
	again.CheckedAt, again.Source = storeTime.Add(time.Hour), pullthrough.SourceRevalidated
	put(again)
	s.move(repo, next, "v1")
	for i, m := range puts {
		if !reflect.DeepEqual(*m, before[i]) {
			s.Errorf("the manifest with Tag %q and Source %q is not what it was before PutManifest", before[i].Tag, before[i].Source)
		}
	}
}
