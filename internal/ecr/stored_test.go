package ecr_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrStored = []trait{
	{"I01", "behind a tag's manifest comes all that it refers to, in the background: every child of an index, every layer", "documented, `fill-mode`", "with `FillBackground` the same, each object once; what is missing keeps nothing else out", testBackgroundImportIsWhole},
	{"I02", "nothing else than the whole image is imported", "documented, `fill-mode`", "departs: `FillLazy`, the default, brings in what clients ask for", testLazyImportIsWhatWasPulled},
	{"I03", "the order in which parts are stored shows to nobody", "inferred, `fill-mode`", "with `FillEager` parts are put before what refers to them, for Stores that check references; parts that upstream does not have are left out", testPartsAreStoredBeforeTheWhole},
	{"I04", "after one pull of an index of two images there are three, and only the index is tagged", "measured", "the same", testOnlyTheIndexIsTagged},
	{"I05", "one architecture comes alone when it is pulled by its own digest", "documented", "the same", testOneArchitectureByItsDigest},
	{"I06", "when a tag has moved, the image that it had stays, untagged", "inferred", "the same, and can be pulled by its digest", testMovedTagLeavesItsImage},
	{"I07", "the size of an image is what is stored of it, that of a list the largest of its images'", "documented", "Stores are told the size of each manifest and blob, as upstream's manifests say", testSizesAreTold},
	{"I08", "blobs are never asked for by HEAD upstream, where ECR Public refuses that", "inferred", "the same, for GET, HEAD and imports", testNoHeadOfBlobs},
	{"I09", "digests are upstream's", "documented", "the same: manifests are kept byte for byte", testDigestsAreUpstreams},
	{"I10", "Docker and OCI images, lists, Helm charts and other artifacts work", "documented", "the same", testKindsOfImages},
	{"I11", "images of Docker schema 1", "chosen, `schema1`", "not imported: `Requested image not found`", testSchema1IsNotImported},
	{"I12", "a manifest has 4 MiB at most, a layer 200,000,000,000 bytes", "documented, `layer-limit`", "the same (502), though AWS says so of pushes and nothing of pulls through; `Policy.MaxBlobBytes` sets another limit", testLargestManifestAndLayer},
	{"I13", "the first clients of a blob are sent to upstream's own storage, by redirect", "measured, `blob-before-import`", "departs: they get the bytes from here, so that a private network needs no way to the internet", testClientsAreNotRedirected},
	{"I14", "images show up in lists some time after the first pull", "measured, `import-timing`", "departs: as soon as the Store has it, a moment after the answer", testStoredImagesAreListed},
	{"I15", "an event tells of each action", "documented, `event-granularity`", "`Proxy.OnEvent` is told of one fetch for the tag or digest that was asked for, and of one for each object that came behind it", testEventsOfAnImport},
	{"I16", "the pull of an archived image", "chosen, `archived-pull`", "the library knows no archive: a host that has one refuses by `Proxy.Authorize`, in its words, and nothing is imported", testArchivedImages},
	{"I17", "by tag, Docker schema 2 is converted to OCI and back when `Accept` leaves out the type that is stored; by digest never (user guide, \"Container image manifest formats\")", "documented, `accept-conversion`", "departs: nothing is converted. The image comes as upstream has it, with upstream's digest, whatever `Accept` says", testNothingIsConverted},
	{"I18", "an image has 1,000 tags at most, a repository 100,000 images", "documented", "departs: there is no such limit", testTagsAreNotLimited},
}

// index makes one of two images.
func index() (*pullthroughtest.Image, []*pullthroughtest.Image) {
	children := []*pullthroughtest.Image{
		pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Layers: 2, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}),
		pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, LayerSize: 5000, Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}}),
	}
	return pullthroughtest.NewIndex(children...), children
}

// goesOffline checks that a has all of the images although upstream has gone.
func (e *ecr) goesOffline(t *testing.T, images ...*pullthroughtest.Image) {
	t.Helper()
	e.Settled(t)
	e.Up.Close()
	for _, img := range images {
		e.serves(t, img.Digest.String(), img)
		e.servesBlobs(t, img)
	}
}

func testBackgroundImportIsWhole(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground))
	list, children := index()
	e.push("1", list)
	e.serves(t, "1", list)
	assert.Equal(t, 1, e.Up.Count("GET /v2/a/manifests/1 200"))
	assert.Len(t, e.Up.Log(), 3+3+2, "upstream: %s", e.Up.Log())
	e.goesOffline(t, append(children, list)...)
}

func testLazyImportIsWhatWasPulled(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	list, children := index()
	e.push("1", list)
	e.serves(t, "1", list)
	e.asked(t, asks("GET", "1", 200))
	e.serves(t, children[0].Digest.String(), children[0])
	e.servesBlobs(t, children[0])
	e.Settled(t)
	assert.Equal(t, 1+3, e.Up.Count("*"))
	assert.Zero(t, e.Up.Count("*"+children[1].Digest.String()+"*"))
}

func testPartsAreStoredBeforeTheWhole(t *testing.T) {
	e, s := startRepoECR(t, nil, fills(pullthrough.FillEager))
	list, children := index()
	e.push("1", list)
	e.serves(t, "1", list)
	place := map[digest.Digest]int{}
	for i, d := range s.puts() {
		place[d] = i + 1
	}
	require.Len(t, place, 1+2+3+2)
	for _, child := range children {
		for _, b := range child.Blobs() {
			assert.Less(t, place[b.Digest], place[child.Digest])
		}
		assert.Less(t, place[child.Digest], place[list.Digest])
	}
	e.goesOffline(t, append(children, list)...)
}

func testOnlyTheIndexIsTagged(t *testing.T) {
	e, s := startRepoECR(t, nil, fills(pullthrough.FillBackground))
	list, children := index()
	e.push("1", list)
	e.serves(t, "1", list)
	assert.Equal(t, map[digest.Digest][]string{list.Digest: {"1"}, children[0].Digest: {""}, children[1].Digest: {""}}, s.tags)
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"))
}

func testOneArchitectureByItsDigest(t *testing.T) {
	e, s := startRepoECR(t, nil, fills(pullthrough.FillBackground))
	list, children := index()
	e.push("1", list)
	e.serves(t, children[1].Digest.String(), children[1])
	assert.Equal(t, map[digest.Digest][]string{children[1].Digest: {""}}, s.tags)
	assert.Equal(t, 1+2, e.Up.Count("*"))
	assert.Empty(t, e.tagsOf(t, "a"))
}

func testMovedTagLeavesItsImage(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground))
	one, two := testkit.Image(1), pullthroughtest.NewIndex(testkit.Image(2), testkit.Image(3))
	e.push("1", one)
	e.serves(t, "1", one)
	e.push("1", two)
	e.Up.Delete("a", one.Digest.String())
	e.pass(day)
	e.serves(t, "1", two)
	e.goesOffline(t, append(two.Children, one, two)...)
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"))
}

func testSizesAreTold(t *testing.T) {
	e, s := startRepoECR(t, nil, fills(pullthrough.FillBackground))
	list, children := index()
	e.push("1", list)
	e.serves(t, "1", list)
	for _, img := range append(children, list) {
		m, err := s.Manifest(t.Context(), ecrRepo("a"), img.Digest.String())
		require.NoError(t, err)
		assert.Equal(t, int64(len(img.Content)), m.Descriptor.Size)
		for _, b := range img.Blobs() {
			assert.Equal(t, b.Size, s.sizes[b.Digest])
		}
	}
	assert.Len(t, s.sizes, 3+2)
}

func testNoHeadOfBlobs(t *testing.T) {
	for name, mode := range map[string]pullthrough.FillMode{"lazy": pullthrough.FillLazy, "background": pullthrough.FillBackground} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, fills(mode))
			e.Up.Fault(pullthroughtest.Fault{Match: "HEAD /v2/*/blobs/*", Status: 401})
			img := testkit.Image(1)
			e.push("1", img)
			for _, b := range img.Blobs() {
				r := e.Ask(t, http.MethodHead, testkit.BlobPath("a", b.Digest))
				assert.Equal(t, 200, r.StatusCode)
				assert.Equal(t, strconv.FormatInt(b.Size, 10), r.Header.Get("Content-Length"))
			}
			e.serves(t, "1", img)
			e.servesBlobs(t, img)
			_, err := e.Import(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "1"}, pullthrough.ImportOptions{})
			assert.NoError(t, err)
			e.Settled(t)
			assert.Zero(t, e.Up.Count("HEAD *"), "upstream: %s", e.Up.Log())
		})
	}
}

func testDigestsAreUpstreams(t *testing.T) {
	content := []byte("{\n\t\"schemaVersion\": 2,\n\t\"mediaType\": \"" + ocispec.MediaTypeImageIndex + "\", \"manifests\": [ ],\r\n \"annotations\": {\"\\u0061\": \"ä\"} }\n\n")
	odd := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(content), Content: content}
	e := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground))
	e.push("1", odd)
	for range 2 {
		e.serves(t, "1", odd)
		e.serves(t, odd.Digest.String(), odd)
	}
	e.asked(t, asks("GET", "1", 200))
}

func testKindsOfImages(t *testing.T) {
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Docker: true})
	for name, img := range map[string]*pullthroughtest.Image{
		"Docker schema 2": docker,
		"manifest list":   pullthroughtest.NewIndex(docker),
		"OCI image":       testkit.Image(2),
		"OCI index":       pullthroughtest.NewIndex(testkit.Image(3)),
		"Helm chart":      pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 4, ArtifactType: "application/vnd.cncf.helm.config.v1+json"}),
		"signature":       pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5, ArtifactType: "application/vnd.dev.cosign.artifact.sig.v1+json", Subject: docker}),
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground))
			e.push("1", img)
			e.serves(t, "1", img)
			e.goesOffline(t, append(img.Children, img)...)
		})
	}
}

func testSchema1IsNotImported(t *testing.T) {
	for _, mediaType := range []string{"application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.docker.distribution.manifest.v1+json"} {
		content := []byte(`{"schemaVersion":1,"name":"a","tag":"1","architecture":"amd64","fsLayers":[],"history":[],"signatures":[]}`)
		old := &pullthroughtest.Image{MediaType: mediaType, Content: content}
		e, s := startRepoECR(t, []string{"a"})
		e.push("1", old)
		e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
		e.Settled(t)
		assert.Empty(t, s.puts())
		assert.Equal(t, 1, e.Up.Count("GET /v2/a/manifests/1 200"))
	}
}

func testLargestManifestAndLayer(t *testing.T) {
	const most = 4_194_304
	sized := func(size int) *pullthroughtest.Image {
		head, tail := `{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[],"annotations":{"a":"`, `"}}`
		content := []byte(head + strings.Repeat("x", size-len(head)-len(tail)) + tail)
		return &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(content), Content: content}
	}
	e := startECR(t, pullthroughtest.Config{})
	e.push("most", sized(most))
	e.serves(t, "most", sized(most))
	e.push("more", sized(most+1))
	testkit.AssertOCI(t, e.Get(t, testkit.ManifestPath("a", "more")), 502, "UNKNOWN")

	layer := testkit.Image(1).Layers[0]
	e.push("1", testkit.Image(1))
	e.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Header: http.Header{"Content-Length": {"200000000001"}}})
	testkit.AssertOCI(t, e.Get(t, testkit.BlobPath("a", layer.Digest)), 502, "UNKNOWN")

	for limit, want := range map[int64]int{layer.Size: 200, layer.Size - 1: 502} {
		e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{MaxBlobBytes: limit}))
		e.push("1", testkit.Image(1))
		assert.Equal(t, want, e.Get(t, testkit.BlobPath("a", layer.Digest)).StatusCode)
	}
}

func testClientsAreNotRedirected(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	bucket := pullthroughtest.New(t, pullthroughtest.Config{})
	img := testkit.Image(1)
	e.push("1", img)
	bucket.Push("a", "", img)
	e.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Redirect: bucket.URL + "{path}?X-Amz-Signature=canary"})
	e.serves(t, "1", img)
	for _, b := range img.Blobs() {
		r := e.Get(t, testkit.BlobPath("a", b.Digest))
		testkit.AssertContent(t, r, b.Digest, testkit.OctetStream, int(b.Size))
		assert.Empty(t, r.Header.Get("Location"))
	}
	e.Settled(t)
	assert.Equal(t, len(img.Blobs()), bucket.Count(testkit.Blobs+" 200"))
	e.Up.Reset()
	bucket.Reset()
	e.servesBlobs(t, img)
	assert.Empty(t, append(e.Up.Log(), bucket.Log()...))
}

func testStoredImagesAreListed(t *testing.T) {
	e, _ := startRepoECR(t, nil)
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a")) // without waiting
	_, err := e.Store.Manifest(t.Context(), ecrRepo("a"), "1")
	assert.NoError(t, err)
	e.asked(t, asks("GET", "1", 200))
}

func testEventsOfAnImport(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground))
	list, children := index()
	e.push("1", list)
	for range 3 {
		e.serves(t, "1", list)
	}
	e.Settled(t)
	fetched := map[string]int{}
	for _, event := range e.told.Of(pullthrough.EventFetch) {
		assert.NoError(t, event.Err)
		assert.Equal(t, event.Request.Ref != "1", event.Part, "the rest was not asked for")
		assert.Equal(t, testkit.Prefix, event.Rule)
		fetched[event.Request.Ref+" "+string(event.Object)]++
	}
	want := map[string]int{"1 manifest": 1}
	for _, child := range children {
		want[child.Digest.String()+" manifest"] = 1
		for _, b := range child.Blobs() {
			want[b.Digest.String()+" blob"] = 1
		}
	}
	assert.Equal(t, want, fetched)

	e.Get(t, testkit.ManifestPath("a", "absent"))
	e.Settled(t)
	all := e.told.Of(pullthrough.EventFetch)
	last := all[len(all)-1]
	assert.Equal(t, "absent", last.Request.Ref)
	assert.ErrorIs(t, last.Err, pullthrough.ErrNotFound)
}

func testArchivedImages(t *testing.T) {
	say := "The image is archived."
	d := &testkit.Door{Refuse: map[pullthrough.Action]error{pullthrough.ActionPull: &pullthrough.Error{Kind: pullthrough.ErrNotFound, Message: say}}}
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Authorize = d.Authorize })
	e.push("1", testkit.Image(1))
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", say)
	e.asked(t)
}

// accept-conversion: digests are upstream's.
func testNothingIsConverted(t *testing.T) {
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Docker: true})
	const dockerManifest, dockerList = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"
	for name, c := range map[string]struct {
		img     *pullthroughtest.Image
		accepts string
	}{
		"Docker image for clients of OCI":  {docker, ocispec.MediaTypeImageManifest},
		"Docker list for clients of OCI":   {pullthroughtest.NewIndex(docker), ocispec.MediaTypeImageIndex},
		"OCI image for clients of Docker":  {testkit.Image(2), dockerManifest},
		"OCI index for clients of Docker":  {pullthroughtest.NewIndex(testkit.Image(3)), dockerList},
		"Docker list for one image of OCI": {pullthroughtest.NewIndex(docker), ocispec.MediaTypeImageManifest},
	} {
		t.Run(name, func(t *testing.T) {
			require.NotEqual(t, c.accepts, c.img.MediaType)
			e := startECR(t, pullthroughtest.Config{})
			e.push("1", c.img)
			for range 2 { // first pull, and stored
				e.serves(t, "1", c.img, "Accept", c.accepts)
			}
			r := e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1"), "Accept", c.accepts)
			testkit.AssertManifest(t, r, http.MethodHead, c.img, c.img.Digest)
			e.serves(t, c.img.Digest.String(), c.img, "Accept", c.accepts)
			e.asked(t, asks("GET", "1", 200))
		})
	}
}

func testTagsAreNotLimited(t *testing.T) {
	const most = 1000
	e := startECR(t, pullthroughtest.Config{})
	img := testkit.Image(1)
	for i := range most + 1 {
		e.Up.Push("a", strconv.Itoa(i), img)
	}
	for i := range most + 1 {
		_, err := e.Manifest(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: strconv.Itoa(i)})
		require.NoError(t, err)
	}
	e.Settled(t)
	assert.Equal(t, most+1, e.Up.Count("GET /v2/a/manifests/* 200"))
	tags, err := e.Mem.Tags(t.Context(), ecrRepo("a"))
	require.NoError(t, err)
	assert.Len(t, tags, most+1)
}
