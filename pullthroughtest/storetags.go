package pullthroughtest

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

var tagChecks = []storeCheck{
	{name: "a second tag changes nothing of the first", rule: ruleKept, run: checkSecondTag},
	{name: "a tag moves and its old digest stays", rule: ruleMove, run: checkTagMoves},
	{name: "a check changes the time only", rule: ruleRevalidated, run: checkRevalidated},
	{name: "a check that comes late moves no tag", rule: ruleRevalidated, run: checkLateCheck},
	{name: "content has one type, by each tag and by digest", rule: ruleDescriptor, run: checkOneType},
	{name: "a tag has a digest of either kind", rule: ruleDescriptor, run: checkTagOfEitherDigest},
}

func checkSecondTag(s *storeTest) {
	repo, img := storeRepo("second-tag"), storeImage(20)
	s.put(repo, img, "v1")
	second := manifestOf(img, "v1.0")
	second.CheckedAt, second.Origin = storeTime.Add(time.Hour), "other.example"
	s.putManifest(repo, second)
	s.wantManifest(repo, "v1.0", second)
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
}

// checkOneType puts content that does not say what it is, first as the one and then, as a proxy does, as what it is stored as.
func checkOneType(s *storeTest) {
	repo, img := storeRepo("one-type"), storeImage(27)
	img.Content = bytes.Replace(img.Content, []byte(`"mediaType":"`+img.MediaType+`",`), nil, 1)
	img.Digest, img.MediaType = digest.FromBytes(img.Content), dockerManifest
	if err := s.offer(repo, img, "v1"); err != nil {
		s.Logf("the Store refuses Docker's type for a manifest that does not say it: %v", err)
		s.wantRefused(repo, img, "v1")
		return
	}
	second := manifestOf(img, "v2")
	second.Descriptor.MediaType = s.manifest(repo, img.Digest.String()).Descriptor.MediaType
	s.putManifest(repo, second)
	for _, tag := range []string{"v1", "v2"} {
		s.wantManifest(repo, tag, manifestOf(img, tag))
	}
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
}

// checkTagOfEitherDigest puts content under both of its digests, as a proxy does if upstream gives a tag a sha512 digest.
func checkTagOfEitherDigest(s *storeTest) {
	repo, img := storeRepo("either-digest"), storeImage(28)
	s.put(repo, img, "")
	long := *img
	long.Digest = digest.SHA512.FromBytes(img.Content)
	if err := s.offer(repo, &long, "v1"); err != nil {
		s.Logf("the Store refuses sha512 digests: %v", err)
		s.wantNoManifest(repo, "v1", "when its manifest was refused")
		return
	}
	s.wantManifest(repo, "v1", manifestOf(&long, "v1"))
	s.wantManifest(repo, long.Digest.String(), manifestOf(&long, ""))
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
	s.putManifest(repo, confirm(manifestOf(&long, "v1"), "v1", time.Hour))
	s.wantManifest(repo, "v1", confirm(manifestOf(&long, "v1"), "v1", time.Hour))
}

func checkTagMoves(s *storeTest) {
	repo, first, second := storeRepo("moves"), storeImage(21), storeImage(22)
	s.put(repo, first, "latest")
	s.put(repo, first, "stays")
	if !s.move(repo, second, "latest") {
		s.wantManifest(repo, "latest", manifestOf(first, "latest"))
		return
	}
	s.wantManifest(repo, "latest", manifestOf(second, "latest"))
	s.wantManifest(repo, "stays", manifestOf(first, "stays"))
	for _, img := range []*Image{first, second} {
		s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
		for _, b := range img.Blobs() {
			s.wantBlob(repo, b.Digest, blobContent(b))
		}
	}
	back := manifestOf(first, "latest")
	back.CheckedAt, back.Origin = time.Time{}, ""
	s.putManifest(repo, back)
	s.wantManifest(repo, "latest", back)
	s.wantManifest(repo, second.Digest.String(), manifestOf(second, ""))
}

// confirm returns the manifest that a proxy puts when upstream has confirmed a stored tag.
func confirm(have *pullthrough.Manifest, tag string, later time.Duration) *pullthrough.Manifest {
	m := *have
	m.Tag, m.CheckedAt, m.Source = tag, storeTime.Add(later), pullthrough.SourceRevalidated
	return &m
}

func checkRevalidated(s *storeTest) {
	repo, img := storeRepo("revalidated"), storeImage(23)
	s.put(repo, img, "v1")
	s.put(repo, img, "v2")
	for _, later := range []time.Duration{time.Hour, 25 * time.Hour} {
		m := confirm(s.manifest(repo, "v1"), "v1", later)
		if err := s.store.PutManifest(s.Context(), repo, m); err != nil {
			s.Fatalf("PutManifest with Source \"revalidated\" failed: %v", err)
		}
		s.wantManifest(repo, "v1", m)
		s.wantManifest(repo, "v2", manifestOf(img, "v2"))
	}
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
	for _, b := range img.Blobs() {
		s.wantBlob(repo, b.Digest, blobContent(b))
	}
}

// checkLateCheck is about a tag that moves while upstream is being asked about its
// old digest.
func checkLateCheck(s *storeTest) {
	repo, first, second := storeRepo("late"), storeImage(24), storeImage(25)
	s.put(repo, first, "latest")
	late := confirm(s.manifest(repo, "latest"), "latest", time.Hour)
	if !s.move(repo, second, "latest") {
		return
	}
	s.putManifest(repo, late)
	if got := s.manifest(repo, "latest").Descriptor.Digest; got != second.Digest {
		s.Errorf("PutManifest with Source \"revalidated\" has moved the tag from %s to %s", second.Digest, got)
	}
	s.wantManifest(repo, second.Digest.String(), manifestOf(second, ""))
}

var nameChecks = []storeCheck{
	{name: "names are told apart", rule: ruleRepo, run: checkNames},
	{name: "the longest names are kept or refused", rule: ruleRefuse, run: checkLongNames},
	{name: "tenants are told apart", rule: ruleRepo, run: checkTenants},
}

func checkNames(s *storeTest) {
	names := []string{
		"a", "a/b", "a/b/c", "a.b", "a-b", "a_b", "a__b", "a--b", "ab", "manifests", "odd/manifests/blobs/tags/uploads/link",
		"blobs/uploads", "current/link", "index", "sha256",
		strings.Repeat("n", 179) + "x", strings.Repeat("n", 179) + "y", strings.Repeat("d/", 80) + "d",
	}
	tags := []string{
		"latest", "Latest", "LATEST", "_", "v1.0-rc_1", "link", "index", "current", "sha256", strings.Repeat("t", 128),
		storeImage(30).Digest.Encoded(), // not a digest without its algorithm
	}
	for i, name := range names {
		s.put(storeRepo(name), storeImage(int64(30+i)), "v1")
	}
	for i, tag := range tags {
		s.put(storeRepo("tags"), storeImage(int64(31+i)), tag)
	}
	for i, name := range names {
		s.wantManifest(storeRepo(name), "v1", manifestOf(storeImage(int64(30+i)), "v1"))
	}
	for i, tag := range tags {
		s.wantManifest(storeRepo("tags"), tag, manifestOf(storeImage(int64(31+i)), tag))
	}
	s.wantNoManifest(storeRepo("tags"), storeImage(30).Digest.String(), "when a tag looks like its hex")
}

// checkLongNames is about names of 256 characters, the limit of Amazon ECR. Some
// registries and file systems allow fewer.
func checkLongNames(s *storeTest) {
	room := 256 - len(storeRepo("").Name)
	flat, deep := strings.Repeat("n", room-1), strings.Repeat("d/", room)[:room-1]
	var kept []int
	names := []string{flat + "x", flat + "y", deep + "x", deep + "y"} // pairs that differ in the last character only
	for i, name := range names {
		repo, img := storeRepo(name), storeImage(int64(50+i))
		if err := s.offer(repo, img, "v1"); err != nil {
			s.Logf("a repository name of %d characters is refused, and so its images would be fetched for every pull: %v", len(repo.Name), err)
			s.wantRefused(repo, img, "v1")
			continue
		}
		kept = append(kept, i)
	}
	for _, i := range kept {
		repo, img := storeRepo(names[i]), storeImage(int64(50+i))
		s.wantManifest(repo, "v1", manifestOf(img, "v1"))
		s.wantBlob(repo, img.Layers[0].Digest, blobContent(img.Layers[0]))
	}
}

// checkTenants puts a different image under the same name and tag for each tenant.
func checkTenants(s *storeTest) {
	name := "store-test/tenants"
	tenants := [storeTenants]pullthrough.Repo{
		{Account: storeAccount, Region: storeRegion, Name: name},
		{Account: otherAccount, Region: storeRegion, Name: name},
		{Account: storeAccount, Region: otherRegion, Name: name},
		{Account: otherAccount, Region: otherRegion, Name: name},
		{Account: storeAccount, Region: storeRegion, Name: otherAccount + "/" + otherRegion + "/" + name},
		{Account: storeAccount, Region: storeRegion, Name: otherRegion + "/" + name},
	}
	var kept []int
	for i, repo := range tenants {
		complaints := s.findForeign(repo, -1, missComplaint)
		img := storeImage(int64(60 + i))
		if err := s.offer(repo, img, "v1"); err != nil && i > 0 {
			s.logRefusal(repo, err)
			s.wantRefused(repo, img, "v1")
			complaints = s.findForeign(repo, -1, contentComplaint)
		} else if err != nil {
			s.Fatalf("put of %s:v1 failed: %v", repo.Name, err)
		} else {
			kept = append(kept, i)
		}
		for _, complaint := range complaints {
			s.Errorf("account %s in %s, repository %s: %s and nothing was put there", repo.Account, repo.Region, repo.Name, complaint)
		}
	}
	for _, i := range kept {
		repo, img := tenants[i], storeImage(int64(60+i))
		if got := s.manifest(repo, "v1").Descriptor.Digest; got != img.Digest {
			s.Errorf("account %s in %s, repository %s: v1 is %s, want %s", repo.Account, repo.Region, repo.Name, got, img.Digest)
		}
		s.wantBlob(repo, img.Layers[0].Digest, blobContent(img.Layers[0]))
		for _, complaint := range s.findForeign(repo, i, missComplaint) {
			s.Errorf("account %s in %s, repository %s: %s, which is another tenant's", repo.Account, repo.Region, repo.Name, complaint)
		}
	}
}

// logRefusal says of a put into another account or Region that was refused that it may be.
func (s *storeTest) logRefusal(repo pullthrough.Repo, err error) {
	s.Helper()
	advice := ""
	if !errors.Is(err, errors.ErrUnsupported) {
		advice = "; an error that Is errors.ErrUnsupported would say so"
	}
	s.Logf("account %s in %s is refused, as a Store may do%s: %v", repo.Account, repo.Region, advice, err)
}

// storeTenants is how many images checkTenants puts.
const storeTenants = 6

// findForeign looks up the images of all tenants but own in repo; -1: of all tenants.
// It returns what complain says about the errors.
func (s *storeTest) findForeign(repo pullthrough.Repo, own int, complain func(error) string) (complaints []string) {
	add := func(look string, err error) {
		if complaint := complain(err); complaint != "" {
			complaints = append(complaints, look+" "+complaint)
		}
	}
	if own < 0 {
		_, err := s.store.Manifest(s.Context(), repo, "v1")
		add("Manifest(v1)", err)
	}
	for i := range storeTenants {
		if i == own {
			continue
		}
		img := storeImage(int64(60 + i))
		_, err := s.store.Manifest(s.Context(), repo, img.Digest.String())
		add("Manifest("+img.Digest.String()+")", err)
		_, err = s.readBlob(s.Context(), repo, img.Layers[0].Digest)
		add("Blob("+img.Layers[0].Digest.String()+")", err)
	}
	return complaints
}

// contentComplaint is missComplaint for a repository that the Store refuses: any
// error is right, and only content is wrong.
func contentComplaint(err error) string {
	if err == nil {
		return "returned something"
	}
	return ""
}
