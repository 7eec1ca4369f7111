package ecr

import (
	"encoding/json"
	"slices"
)

// IsPolicy reports whether text is an IAM policy that a repository or a registry can have:
// an object with statements, each of which has an effect, an action, a principal, and a
// resource if needsResource is set. Policies of repositories must have none. The names of
// members are case-sensitive. Who the principals are, and what the actions, is not looked at.
func IsPolicy(text string, needsResource bool) bool {
	var policy map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &policy) != nil || !onlyHas(policy, "Version", "Id", "Statement") {
		return false
	}
	if version, sent := policy["Version"]; sent && !isOneOf(version, "2008-10-17", "2012-10-17") {
		return false
	}
	var statements []map[string]json.RawMessage
	if json.Unmarshal(policy["Statement"], &statements) != nil {
		var one map[string]json.RawMessage
		if json.Unmarshal(policy["Statement"], &one) != nil {
			return false
		}
		statements = append(statements[:0], one)
	}
	return len(statements) > 0 && !slices.ContainsFunc(statements, func(s map[string]json.RawMessage) bool {
		return !isStatement(s, needsResource)
	})
}

func isStatement(s map[string]json.RawMessage, needsResource bool) bool {
	return onlyHas(s, "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition") &&
		isOneOf(s["Effect"], "Allow", "Deny") &&
		hasOne(s, "Principal", "NotPrincipal") && hasOne(s, "Action", "NotAction") && hasOne(s, "Resource", "NotResource") == needsResource
}

// onlyHas reports whether an object has no members but these.
func onlyHas(object map[string]json.RawMessage, names ...string) bool {
	return unknownMember(object, names...) == ""
}

// unknownMember is a member of the object that is none of these, the first by its name.
func unknownMember(object map[string]json.RawMessage, names ...string) (unknown string) {
	for name := range object {
		if !slices.Contains(names, name) && (unknown == "" || name < unknown) {
			unknown = name
		}
	}
	return unknown
}

func hasOne(object map[string]json.RawMessage, name, not string) bool {
	return (object[name] != nil) != (object[not] != nil)
}

func isOneOf(value json.RawMessage, texts ...string) bool {
	var text *string
	return json.Unmarshal(value, &text) == nil && text != nil && slices.Contains(texts, *text)
}
