package main

import (
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
)

// claims are what sources have said of prefixes, hosts and names. The sources are read in
// the order of what counts more: the first that says something is the one that counts.
type claims struct {
	by     map[claim]source
	hidden map[claim]bool // rules of a source that do not count
}

type claim struct {
	what, key string
	from      source // in claims.hidden only
}

// verdict is what becomes of something that a source says.
type verdict int

const (
	counts verdict = iota
	hidden         // a source that counts more has said something
	twice          // the source itself has said something
)

// claim says what becomes of what the source says of the key.
func (c *claims) claim(what, key string, from source) verdict {
	if what == "credential" && c.isHidden(key, from) {
		return hidden
	}
	by, taken := c.by[claim{what: what, key: key}]
	switch {
	case taken && by == from:
		return twice
	case taken:
		return hidden
	}
	put(&c.by, claim{what: what, key: key}, from)
	return counts
}

// hide notes that a rule of the source does not count. If the one that does names another
// registry, that must not get what the source says for its own rule.
func (c *claims) hide(rule pullthrough.Rule, from source, by []pullthrough.Rule) {
	if !slices.ContainsFunc(by, func(r pullthrough.Rule) bool { return r.Prefix == rule.Prefix && r.UpstreamURL == rule.UpstreamURL }) {
		put(&c.hidden, claim{key: rule.Prefix, from: from}, true)
	}
}

func (c *claims) isHidden(prefix string, from source) bool {
	return c.hidden[claim{key: prefix, from: from}]
}
