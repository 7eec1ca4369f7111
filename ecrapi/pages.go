package ecrapi

import (
	"cmp"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

// page is the part of a list that a request asks for. Lists are in the bytewise order
// of their keys (describe-order), and a page begins after a key. So it does not matter
// what was created or deleted since the page before.
type page struct {
	op    string
	after string
	max   int
}

// pageOf reads the members of a request for one page.
func pageOf(op string, nextToken *string, maxResults *int64) (page, error) {
	p := page{op: op, max: defaultPage}
	if err := fails(shape.Number("maxResults", maxResults, 1, maxPage)); err != nil {
		return p, err
	}
	if maxResults != nil {
		p.max = int(*maxResults)
	}
	if hasToken(nextToken) {
		raw, err := base64.RawURLEncoding.Strict().DecodeString(*nextToken)
		after, ours := strings.CutPrefix(string(raw), op+" ")
		if err != nil || !ours {
			return p, fails(&shape.Error{At: "nextToken", Constraint: "Member must be a token that this operation has returned"})
		}
		p.after = after
	}
	return p, nil
}

// hasToken reports whether a request has a token. An empty one counts as none
// (empty-token): AWS's own examples send it.
func hasToken(nextToken *string) bool { return nextToken != nil && *nextToken != "" }

// cutPage returns the page of all that p asks for, and the token for the next page. The
// token is "" on the last page.
func cutPage[T any](p page, all []T, key func(T) string) (part []T, nextToken string) {
	part = sortBy(all, key)
	i, found := slices.BinarySearchFunc(part, p.after, func(item T, after string) int { return cmp.Compare(key(item), after) })
	if found {
		i++
	}
	if part = part[i:]; len(part) <= p.max {
		return part, ""
	}
	part = part[:p.max]
	return part, base64.RawURLEncoding.EncodeToString([]byte(p.op + " " + key(part[p.max-1])))
}

func sortBy[T any](all []T, key func(T) string) []T {
	all = slices.Clone(all)
	slices.SortFunc(all, func(x, y T) int { return cmp.Compare(key(x), key(y)) })
	return all
}
