package upstream_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// FuzzToken: what comes out can stand in a header, and lives neither for a
// moment nor for ever.
func FuzzToken(f *testing.F) {
	for _, seed := range []string{
		`{"token":"x"}`, `{"access_token":"x","expires_in":300}`, `{"token":"a","access_token":"b","refresh_token":"c","expires_in":"300"}`,
		`{"token":"x\r\ny: z"}`, `{"token":"x","expires_in":1e400}`, `{"token":"x","expires_in":-5}`, `{"token":5}`, `[]`, `null`, `<html>`, `{"token":"é"}`,
		`{"token":"x","expires_in":9223372036854775807}`, `{"Token":"x","TOKEN":"y"}`, `{"token":"x","issued_at":"0001-01-01T00:00:00Z"}`, strings.Repeat("[", 5000),
	} {
		f.Add([]byte(seed))
	}
	for _, seed := range append(spoken(f, `{"token"`), spoken(f, `{"access_token"`)...) {
		f.Add([]byte(seed))
	}
	printable := regexp.MustCompile(`^[!-~]*$`)
	f.Fuzz(func(t *testing.T, body []byte) {
		token, refresh, life, err := upstream.ParseToken(body)
		if err != nil {
			assert.Empty(t, token+refresh)
			assert.Less(t, len(err.Error()), 200)
			return
		}
		assert.True(t, json.Valid(body))
		assert.NotEmpty(t, token)
		for _, s := range []string{token, refresh} {
			assert.Regexp(t, printable, s)
			assert.LessOrEqual(t, len(s), 16<<10)
		}
		assert.GreaterOrEqual(t, life, 54*time.Second, "a minute, less what it is renewed early")
		assert.Less(t, life, 24*time.Hour)
	})
}
