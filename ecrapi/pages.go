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

// page is the part of a list that a request asks for. Lists are in bytewise order
// of their keys (describe-order), so that a page begins after a key, whatever was
// created or deleted since the page before.
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
	if given(nextToken) {
		raw, err := base64.RawURLEncoding.Strict().DecodeString(*nextToken)
		after, ours := strings.CutPrefix(string(raw), op+" ")
		if err != nil || !ours {
			return p, fails(&shape.Error{At: "nextToken", Constraint: "Member must be a token that this operation has returned"})
		}
		p.after = after
	}
	return p, nil
}

// given reports whether a request has a token (empty-token): AWS's own examples send an
// empty one.
func given(nextToken *string) bool { return nextToken != nil && *nextToken != "" }

// paged returns the page of all, and the token of the next: "" after the last.
func paged[T any](p page, all []T, key func(T) string) (part []T, nextToken string) {
	part = sorted(all, key)
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

func sorted[T any](all []T, key func(T) string) []T {
	all = slices.Clone(all)
	slices.SortFunc(all, func(x, y T) int { return cmp.Compare(key(x), key(y)) })
	return all
}

// only are the items whose key is one of those asked for, in the order of keys.
func only[T any](all []T, key func(T) string, keys []string) []T {
	part := sorted(all, key)
	return slices.DeleteFunc(part, func(item T) bool {
		return !slices.ContainsFunc(keys, func(k string) bool { return same(k, key(item)) })
	})
}

// find returns the place of the item with the key, or -1.
func find[T any](all []T, key func(T) string, want string) int {
	return slices.IndexFunc(all, func(item T) bool { return same(key(item), want) })
}

// same compares prefixes: foo/ is foo (slash-prefix).
func same(x, y string) bool { return strings.TrimSuffix(x, "/") == strings.TrimSuffix(y, "/") }

// The changes of a list in Settings. None is made in place.

func with[T any](all []T, item T) []T { return append(slices.Clip(all), item) }

func without[T any](all []T, i int) []T { return slices.Delete(slices.Clone(all), i, i+1) }

func replaced[T any](all []T, i int, item T) []T {
	all = slices.Clone(all)
	all[i] = item
	return all
}
