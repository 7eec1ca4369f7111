package ecr

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// CheckLifecycle returns what is wrong with a lifecycle policy, in ECR's words where they
// are known, and "" if it is one. The names of members are case-sensitive.
func CheckLifecycle(text string) string {
	var policy map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &policy) != nil || policy == nil {
		return "Could not map policyString into LifecyclePolicy."
	}
	if wrong := checkMembers(policy, []string{"rules"}, nil); wrong != "" {
		return wrong
	}
	var raw []map[string]json.RawMessage
	if json.Unmarshal(policy["rules"], &raw) != nil || raw == nil {
		return sayMissing("rules")
	}
	rules := make([]lifecycleRule, len(raw))
	for i, from := range raw {
		if wrong := rules[i].read(from); wrong != "" {
			return wrong
		}
	}
	return checkTogether(rules)
}

// lifecycleRule is what rules are compared by.
type lifecycleRule struct {
	priority                int64
	tagStatus, storageClass string
}

// lifecycleSelection is the selection of a rule.
type lifecycleSelection struct {
	TagStatus, StorageClass, CountType, CountUnit string
	CountNumber                                   int64
	TagPrefixList, TagPatternList                 []string
}

func (r *lifecycleRule) read(from map[string]json.RawMessage) string {
	if wrong := checkMembers(from, []string{"action", "rulePriority", "selection"}, []string{"description"}); wrong != "" {
		return wrong
	}
	var action, selection map[string]json.RawMessage
	if json.Unmarshal(from["action"], &action) != nil || json.Unmarshal(from["selection"], &selection) != nil ||
		json.Unmarshal(from["rulePriority"], &r.priority) != nil {
		return sayNoSchema
	}
	if r.priority < 1 {
		return sayMinimum(r.priority)
	}
	to, wrong := checkAction(action)
	if wrong != "" {
		return wrong
	}
	s, wrong := checkSelection(selection)
	if wrong != "" {
		return wrong
	}
	r.tagStatus, r.storageClass = s.TagStatus, s.StorageClass
	return s.check(to)
}

// checkAction returns the action's type.
func checkAction(action map[string]json.RawMessage) (kind, wrong string) {
	if wrong := checkMembers(action, []string{"type"}, []string{"targetStorageClass"}); wrong != "" {
		return "", wrong
	}
	class, moves := action["targetStorageClass"]
	switch {
	case isOneOf(action["type"], "expire") && !moves:
		return "expire", ""
	case isOneOf(action["type"], "transition") && isOneOf(class, "archive"):
		return "transition", ""
	case !isOneOf(action["type"], "expire", "transition"):
		return "", sayEnum(action["type"], "expire", "transition")
	}
	return "", sayNoSchema
}

func checkSelection(selection map[string]json.RawMessage) (s lifecycleSelection, wrong string) {
	wrong = checkMembers(selection, []string{"countNumber", "countType", "tagStatus"}, []string{"countUnit", "storageClass", "tagPatternList", "tagPrefixList"})
	if wrong != "" {
		return s, wrong
	}
	if !isOneOf(selection["tagStatus"], "any", "tagged", "untagged") {
		return s, sayEnum(selection["tagStatus"], "any", "tagged", "untagged")
	}
	if class, sent := selection["storageClass"]; sent && !isOneOf(class, "archive", "standard") {
		return s, sayEnum(class, "archive", "standard")
	}
	s.StorageClass = "standard"
	for name, to := range map[string]any{
		"countNumber": &s.CountNumber, "countType": &s.CountType, "tagStatus": &s.TagStatus, "countUnit": &s.CountUnit,
		"storageClass": &s.StorageClass, "tagPatternList": &s.TagPatternList, "tagPrefixList": &s.TagPrefixList,
	} {
		if value, sent := selection[name]; sent && (string(value) == "null" || json.Unmarshal(value, to) != nil) {
			return s, sayNoSchema
		}
	}
	return s, ""
}

// check checks the members of a selection against each other.
func (s lifecycleSelection) check(action string) string {
	lists := len(s.TagPrefixList) > 0 || len(s.TagPatternList) > 0
	switch {
	case s.CountNumber < 1:
		return sayMinimum(s.CountNumber)
	case !s.countFits(action):
		return sayNoSchema
	case s.TagStatus == "tagged" && !lists:
		return "Must specify tagPrefixList or tagPatternList when tagStatus=TAGGED."
	case s.TagStatus != "tagged" && (s.TagPrefixList != nil || s.TagPatternList != nil):
		return "Cannot specify tagPrefixList or tagPatternList when tagStatus=" + strings.ToUpper(s.TagStatus) + "."
	case len(s.TagPrefixList) > 0 && len(s.TagPatternList) > 0:
		return "Cannot specify both tagPrefixList and tagPatternList."
	case slices.ContainsFunc(s.TagPatternList, func(p string) bool { return strings.Count(p, "*") > 4 }):
		return "A tag pattern has at most 4 wildcards."
	}
	return ""
}

// countFits reports whether the count is one that ECR's schema knows: a number of images, or
// of days. Images are not expired by the time of their last pull.
func (s lifecycleSelection) countFits(action string) bool {
	switch s.CountType {
	case "imageCountMoreThan":
		return s.CountUnit == ""
	case "sinceImagePushed", "sinceImageTransitioned":
		return s.CountUnit == "days"
	case "sinceImagePulled":
		return s.CountUnit == "days" && action == "transition"
	}
	return false
}

// checkTogether checks the rules against each other.
func checkTogether(rules []lifecycleRule) string {
	untagged, last := map[string]bool{}, map[string]int64{}
	priorities := map[int64]bool{}
	for _, r := range rules {
		if priorities[r.priority] {
			return "Rules must have unique priorities."
		}
		priorities[r.priority] = true
		last[r.storageClass] = max(last[r.storageClass], r.priority)
		if r.tagStatus == "untagged" {
			if untagged[r.storageClass] {
				return "Only one rule can select Untagged images per storage class"
			}
			untagged[r.storageClass] = true
		}
	}
	for _, r := range rules {
		if r.tagStatus == "any" && r.priority < last[r.storageClass] {
			return "Rule for tagStatus=ANY must have the lowest priority per storage class"
		}
	}
	return ""
}

// checkMembers checks that an object has all that is needed, and nothing else but what is
// optional.
func checkMembers(object map[string]json.RawMessage, needed, optional []string) string {
	missing := slices.DeleteFunc(slices.Clone(needed), func(name string) bool { return object[name] != nil })
	if len(missing) > 0 {
		return sayMissing(missing...)
	}
	if unknown := unknownMember(object, slices.Concat(needed, optional)...); unknown != "" {
		return "object instance has properties which are not allowed by the schema: (" + list(unknown) + ")"
	}
	return ""
}

// ECR's words, those of a validator of JSON schemas.
const sayNoSchema = "instance failed to match exactly one schema (matched 0 out of 2)"

func sayMissing(names ...string) string {
	return "object has missing required properties (" + list(names...) + ")"
}

func sayMinimum(n int64) string {
	return fmt.Sprintf("numeric instance is lower than the required minimum (minimum: 1, found: %d)", n)
}

func sayEnum(value json.RawMessage, known ...string) string {
	return "instance value (" + string(value) + ") not found in enum (possible values: " + list(known...) + ")"
}

func list(names ...string) string { return `["` + strings.Join(names, `","`) + `"]` }
