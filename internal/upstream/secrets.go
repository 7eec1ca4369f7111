package upstream

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

const (
	// maxSecrets is how many secrets of one target ID are known at a time. Passwords
	// are few, and tokens expire.
	maxSecrets = 64
	// secretStart is how much of a secret is kept. A token may have 16 KiB, and its
	// beginning is enough to find it. What follows that is struck out with it.
	secretStart = 64
	// minSecret is the length from which on a secret is struck out of texts. A
	// shorter one would strike out half of every text.
	minSecret = 4
	maxForm   = 64 << 10
	// struck stands in place of a secret.
	struck = "..."
)

// secrets are the passwords and tokens that were sent for the targets of one ID, or had
// for them. What a registry says may repeat them, also much later and in another
// answer, so they are struck out of every word of a registry's that is kept. It is safe
// for concurrent use.
type secrets struct {
	mu    sync.Mutex
	words []string // the one that was sent last comes last
	users []string // names, which stand in names of hosts by right
}

// noteRequest notes the secrets of a request that is to be sent.
func (s *secrets) noteRequest(req *http.Request) {
	if _, value, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		s.note(value)
		if plain, err := base64.StdEncoding.DecodeString(value); err == nil {
			user, password, _ := strings.Cut(string(plain), ":")
			s.note(string(plain), password)
			s.noteUser(user)
		}
	}
	s.note(refreshTokenOf(req))
}

// note notes secrets.
func (s *secrets) note(words ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, word := range words {
		s.words = remember(s.words, word)
	}
}

func (s *secrets) noteUser(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = remember(s.users, name)
}

// remember adds word as the one that was sent last, and forgets the one that was sent
// longest ago, if there are too many.
func remember(all []string, word string) []string {
	word = word[:min(len(word), secretStart)]
	if len(word) < minSecret || len(all) > 0 && all[len(all)-1] == word {
		return all
	}
	all = slices.DeleteFunc(all, func(other string) bool { return other == word })
	if len(all) == maxSecrets {
		all = slices.Delete(all, 0, 1)
	}
	return append(all, strings.Clone(word))
}

// strike returns text without the secrets, the names of users and the words in more.
func (s *secrets) strike(text string, more ...string) string {
	if text == "" {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return strike(text, slices.Concat(s.words, s.users, more))
}

// strike strikes out words in the forms in which an answer may repeat them, the longest
// first, so that none is hidden by a part of it.
func strike(text string, words []string) string {
	words = slices.SortedFunc(slices.Values(words), func(a, b string) int { return len(b) - len(a) })
	for _, word := range words {
		if len(word) >= minSecret {
			text = strikeWord(text, word, len(word) >= secretStart)
			text = strikeWord(text, url.QueryEscape(word), len(word) >= secretStart)
		}
	}
	return text
}

// strikeWord strikes out a word and, where more may belong to it, what follows without a
// space.
func strikeWord(text, word string, more bool) string {
	if !more {
		return strings.ReplaceAll(text, word, struck)
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, word)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString(struck)
		end := strings.IndexFunc(rest, func(r rune) bool { return r <= ' ' || strings.ContainsRune(`"'<>,;&`, r) })
		if end < 0 {
			return b.String()
		}
		text = rest[end:]
	}
}

// clean returns e without secrets in the name of its host and in the text of its cause. An
// upstream chooses names, of hosts that it redirects to and in certificates. own is the
// host that the caller named.
func (s *secrets) clean(e *Error, own string) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Host != own {
		e.Host = strike(e.Host, s.words)
	}
	if e.Err == nil {
		return e
	}
	const placeholder = "\x00"
	text := strings.ReplaceAll(e.Err.Error(), own, placeholder)
	if left := strike(text, s.words); left != text {
		e.Err = withText(e.Err, strings.ReplaceAll(left, placeholder, own))
	}
	return e
}

// withText returns an error of the same meaning as err, which says text instead.
func withText(err error, text string) error {
	if _, ok := errors.AsType[*RedirectError](err); ok {
		return &RedirectError{text}
	}
	if _, ok := errors.AsType[*brokenError](err); ok {
		return &brokenError{errors.New(text)}
	}
	return errors.New(text)
}

// queryOf are the values of a URL's query, which may be those of a presigned URL.
func queryOf(u *url.URL) (values []string) {
	for name, v := range u.Query() {
		if name != "scope" && name != "service" {
			values = append(values, v...)
		}
	}
	return values
}

// refreshTokenOf is the identity token in the form of a token request; "": none.
func refreshTokenOf(req *http.Request) string {
	if req.GetBody == nil {
		return ""
	}
	body, err := req.GetBody()
	if err != nil {
		return ""
	}
	sent, _ := io.ReadAll(io.LimitReader(body, maxForm)) // from memory
	form, _ := url.ParseQuery(string(sent))
	return form.Get("refresh_token")
}
