package ecrapi

import (
	"fmt"
	"slices"
	"strings"
)

// list is one of the lists in [Settings]. Its items have keys, and no two have the same.
// Its methods change no slice in place.
type list[T any] struct {
	key func(T) string
	max int

	item, items      string // in sentences: an item, before its key in quotes, and several
	notFound, exists string // the exceptions
}

// add returns all with the item. It fails if the key exists already, or if there are too
// many items.
func (l list[T]) add(reg registry, all []T, item T) ([]T, error) {
	key := l.key(item)
	switch {
	case l.index(all, key) >= 0:
		return all, &Error{l.exists, fmt.Sprintf("The %s '%s' already exists in the registry with id '%s'", l.item, key, reg.account)}
	case len(all) >= l.max:
		return all, &Error{limitExceeded, fmt.Sprintf("The registry with id '%s' has %d %s already, which is as many as there may be", reg.account, l.max, l.items)}
	}
	return append(slices.Clip(all), item), nil
}

// find returns the item with the key, and its index. It fails if there is none.
func (l list[T]) find(reg registry, all []T, key string) (item T, i int, err error) {
	if i = l.index(all, key); i < 0 {
		return item, i, &Error{l.notFound, fmt.Sprintf("The %s '%s' does not exist in the registry with id '%s'", l.item, key, reg.account)}
	}
	return all[i], i, nil
}

// remove returns all without the item that has the key, and that item.
func (l list[T]) remove(reg registry, all []T, key string) ([]T, T, error) {
	item, i, err := l.find(reg, all, key)
	if err != nil {
		return all, item, err
	}
	return slices.Delete(slices.Clone(all), i, i+1), item, nil
}

// replace returns all with item in the place i.
func (l list[T]) replace(all []T, i int, item T) []T {
	all = slices.Clone(all)
	all[i] = item
	return all
}

// only returns the items whose key is one of keys, in the order of keys.
func (l list[T]) only(all []T, keys []string) []T {
	return slices.DeleteFunc(sortBy(all, l.key), func(item T) bool {
		return !slices.ContainsFunc(keys, func(key string) bool { return samePrefix(key, l.key(item)) })
	})
}

func (l list[T]) index(all []T, key string) int {
	return slices.IndexFunc(all, func(item T) bool { return samePrefix(l.key(item), key) })
}

// samePrefix compares keys. foo/ is the same as foo (slash-prefix).
func samePrefix(x, y string) bool { return strings.TrimSuffix(x, "/") == strings.TrimSuffix(y, "/") }
