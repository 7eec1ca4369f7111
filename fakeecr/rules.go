package fakeecr

import (
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// intersect returns the rules that have the prefix of one of others.
func intersect(rules, others []pullthrough.Rule) []pullthrough.Rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r pullthrough.Rule) bool { return !contains(others, r) })
}

// subtract returns the rules that have the prefix of none of others.
func subtract(rules, others []pullthrough.Rule) []pullthrough.Rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r pullthrough.Rule) bool { return contains(others, r) })
}

// contains reports whether one of rules has the prefix of rule.
func contains(rules []pullthrough.Rule, rule pullthrough.Rule) bool {
	return slices.ContainsFunc(rules, func(r pullthrough.Rule) bool { return samePrefix(r, rule) })
}

func samePrefix(a, b pullthrough.Rule) bool { return trimPrefix(a.Prefix) == trimPrefix(b.Prefix) }

// trimPrefix returns the one spelling of a rule's prefix: ECR takes "hub" and "hub/" for
// the same.
func trimPrefix(prefix string) string { return strings.TrimSuffix(prefix, "/") }
