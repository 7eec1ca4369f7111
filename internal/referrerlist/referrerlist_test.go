package referrerlist_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/referrerlist"
)

func entry(name, note string) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 1, ArtifactType: "type/" + name,
		Annotations: map[string]string{"note": note},
	}
}

func listOf(all ...ocispec.Descriptor) *ocispec.Index {
	index := referrerlist.Empty()
	index.Manifests = append(index.Manifests, all...)
	return index
}

func TestListsAreMergedByDigest(t *testing.T) {
	mine, other := listOf(entry("a", "mine"), entry("b", "mine"), entry("a", "again")), listOf(entry("b", "other"), entry("c", "other"))
	got, err := referrerlist.Merge(mine, other)
	require.NoError(t, err)
	assert.Equal(t, listOf(entry("a", "mine"), entry("b", "mine"), entry("c", "other")), got)
	assert.Equal(t, listOf(entry("c", "other")), referrerlist.OfType(got, "type/c"))
	assert.Equal(t, got, referrerlist.OfType(got, ""))

	none, err := referrerlist.Merge()
	require.NoError(t, err)
	assert.Equal(t, referrerlist.Empty(), none)
	assert.NotNil(t, none.Manifests)
}

func TestAMergedListHasTheLimitOfOne(t *testing.T) {
	full := func(list string) *ocispec.Index {
		index := referrerlist.Empty()
		for i := range 300 {
			d := entry(fmt.Sprint(list, i), "")
			d.ArtifactType = strings.Repeat("x", 10_000)
			index.Manifests = append(index.Manifests, d)
		}
		return index
	}
	_, err := referrerlist.Merge(full("a"))
	require.NoError(t, err)
	_, err = referrerlist.Merge(full("a"), full("a"))
	require.NoError(t, err, "it is the same one")
	_, err = referrerlist.Merge(full("a"), full("b"))
	assert.ErrorIs(t, err, referrerlist.ErrTooLong)
}

func TestTheNextPageIsOfTheSameList(t *testing.T) {
	at, err := url.Parse("http://up.test/v2/a/referrers/sha256:x?n=1")
	require.NoError(t, err)
	for link, want := range map[string]string{
		"":                             "",
		`<?n=2>; rel="next"`:           "http://up.test/v2/a/referrers/sha256:x?n=2",
		`<sha256:x?n=2>; rel="next"`:   "", // a scheme, to a URL
		`<./sha256:x?n=2>; rel="next"`: "http://up.test/v2/a/referrers/sha256:x?n=2",
		`</v2/a/referrers/sha256%3Ax?n=2>; rel=next`:                        "http://up.test/v2/a/referrers/sha256%3Ax?n=2",
		`<https://other.test/v2/a/referrers/sha256:x?n=2>; rel="prev next"`: "https://other.test/v2/a/referrers/sha256:x?n=2",
		`</first>; rel="first", </v2/a/referrers/sha256:x?n=2>; rel="next"`: "http://up.test/v2/a/referrers/sha256:x?n=2",
		`<?n=1>; rel="next"`:                                                 "the same page",
		`<>; rel="next"`:                                                     "the same page",
		`</v2/a/referrers/sha256:x>; rel="next"`:                             "no query",
		`</v2/b/referrers/sha256:x?n=2>; rel="next"`:                         "another list",
		`<http://me@up.test/v2/a/referrers/sha256:x?n=2>; rel="next"`:        "a user",
		`<http://up.test:x/v2/a/referrers/sha256:x?n=2>; rel="next"`:         "no URL",
		`</v2/a/referrers/sha256:x/../sha256:y?n=2>; rel="next"`:             "another list",
		`<http://up.test/v2/a/referrers/sha256:x/?n=2>; title=x; rel="next"`: "another list",
	} {
		next, err := referrerlist.Next(at, http.Header{"Link": {link}})
		switch {
		case strings.HasPrefix(want, "http"):
			require.NoError(t, err, link)
			assert.Equal(t, want, next.String(), link)
		case link == "":
			assert.NoError(t, err)
			assert.Nil(t, next)
		default:
			assert.ErrorIs(t, err, referrerlist.ErrNoPage, "%s: %s", link, want)
		}
	}
}
