package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestTagsComePageByPage(t *testing.T) {
	secrets := pullthroughtest.NewSecrets(t)
	for name, auth := range map[string]pullthroughtest.Auth{"anonymous": pullthroughtest.Open, "bearer": pullthroughtest.Bearer} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Auth: auth})
			secrets.Watch(w.up)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			for i := range 2500 {
				w.up.Push("a", fmt.Sprintf("%04d", i), img)
			}
			tags, err := w.Tags(t.Context(), w.target)
			require.NoError(t, err)
			require.Len(t, tags, 2500)
			assert.Equal(t, "2499", tags[2499])
			assert.Equal(t, 3, w.up.Count("GET /v2/a/tags/list 200"))
		})
	}
}

func TestAListOfTagsThatIsNone(t *testing.T) {
	answer := func(status int, body string, header ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") {
				return false
			}
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	many := `{"tags":[` + strings.Repeat(`"a",`, upstream.MaxTags) + `"a"]}`
	for name, c := range map[string]struct {
		handler func(http.ResponseWriter, *http.Request) bool
		want    error
		tags    []string
	}{
		"null":                       {handler: answer(200, `{"name":"a","tags":null}`)},
		"what is no tag":             {handler: answer(200, `{"tags":["1","","..","a/b","2"," ","`+strings.Repeat("x", 129)+`"]}`), tags: []string{"1", "2"}},
		"no JSON":                    {handler: answer(200, "<html>"), want: upstream.ErrUnavailable},
		"another document":           {handler: answer(200, `{"tags":"1"}`), want: upstream.ErrUnavailable},
		"no such repository":         {handler: answer(404, `{}`), want: upstream.ErrNotFound},
		"a refusal":                  {handler: answer(403, `{}`), want: upstream.ErrDenied},
		"too many":                   {handler: answer(200, many), want: upstream.ErrTooLarge},
		"too long":                   {handler: answer(200, `{"x":"`+strings.Repeat("x", 16<<20)+`"}`), want: upstream.ErrTooLarge},
		"a page elsewhere":           {handler: answer(200, `{"tags":["1"]}`, "Link", `<http://other.test/v2/a/tags/list?last=1>; rel="next"`), want: upstream.ErrUnavailable},
		"a page of another list":     {handler: answer(200, `{"tags":["1"]}`, "Link", `</v2/b/tags/list?last=1>; rel="next"`), want: upstream.ErrUnavailable},
		"a next page that is itself": {handler: answer(200, `{"tags":["1"]}`, "Link", `<?n=1000>; rel="next"`), want: upstream.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Handler: c.handler})
			w.target.Options.Retries = -1
			tags, err := w.Tags(t.Context(), w.target)
			assert.ErrorIs(t, err, c.want)
			assert.Equal(t, c.tags, tags)
			assert.Equal(t, 1, w.up.Count("*"))
		})
	}
}

func TestAListOfTagsWithoutEnd(t *testing.T) {
	page := 0
	w := newWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		page++
		w.Header().Set("Link", fmt.Sprintf(`<?last=%d>; rel="next"`, page))
		_, _ = io.WriteString(w, `{"tags":[]}`)
		return true
	}})
	_, err := w.Tags(t.Context(), w.target)
	assert.ErrorIs(t, err, upstream.ErrTooLarge)
	assert.Equal(t, 2000, w.up.Count("*"))
}
