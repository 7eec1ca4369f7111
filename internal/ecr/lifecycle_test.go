package ecr_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	tables "github.com/ecr-pullthrough/pullthrough/internal/ecr"
)

// lifecycleRule is a rule of a lifecycle policy with this selection and action.
func lifecycleRule(priority, selection, action string) string {
	return `{"rulePriority":` + priority + `,"selection":{` + selection + `},"action":{` + action + `}}`
}

func TestLifecyclePolicies(t *testing.T) {
	const (
		expire   = `"type":"expire"`
		archive  = `"type":"transition","targetStorageClass":"archive"`
		untagged = `"tagStatus":"untagged","countType":"imageCountMoreThan","countNumber":1`
		all      = `"tagStatus":"any","countType":"imageCountMoreThan","countNumber":9`
		tagged   = `"tagStatus":"tagged","countType":"imageCountMoreThan","countNumber":9`
		days     = `"countUnit":"days","countNumber":1`
		noSchema = "instance failed to match exactly one schema (matched 0 out of 2)"
	)
	one := func(selection, action string) string {
		return `{"rules":[` + lifecycleRule("1", selection, action) + `]}`
	}
	for name, c := range map[string]struct{ text, want string }{
		"no rules yet":               {`{"rules":[]}`, ""},
		"untagged":                   {one(untagged, expire), ""},
		"by prefix":                  {one(tagged+`,"tagPrefixList":["v"]`, expire), ""},
		"by pattern":                 {one(tagged+`,"tagPatternList":["*a*b*c*"]`, expire), ""},
		"days since the push":        {one(`"tagStatus":"any","countType":"sinceImagePushed",`+days, expire), ""},
		"archived after a pull":      {one(`"tagStatus":"any","countType":"sinceImagePulled",`+days, archive), ""},
		"archived and expired":       {`{"rules":[` + lifecycleRule("1", `"tagStatus":"any","countType":"sinceImagePulled",`+days, archive) + `,` + lifecycleRule("2", `"storageClass":"archive","tagStatus":"any","countType":"sinceImageTransitioned",`+days, expire) + `]}`, ""},
		"a description":              {`{"rules":[{"description":"d","rulePriority":1,"selection":{` + all + `},"action":{` + expire + `}}]}`, ""},
		"no JSON":                    {"rules", "Could not map policyString into LifecyclePolicy."},
		"a list":                     {"[]", "Could not map policyString into LifecyclePolicy."},
		"null":                       {"null", "Could not map policyString into LifecyclePolicy."},
		"an object":                  {"{}", `object has missing required properties (["rules"])`},
		"rules that are no list":     {`{"rules":{}}`, `object has missing required properties (["rules"])`},
		"rules that are null":        {`{"rules":null}`, `object has missing required properties (["rules"])`},
		"names in another case":      {`{"Rules":[]}`, `object has missing required properties (["rules"])`},
		"something else":             {`{"rules":[],"x":1}`, `object instance has properties which are not allowed by the schema: (["x"])`},
		"an empty rule":              {`{"rules":[{}]}`, `object has missing required properties (["action","rulePriority","selection"])`},
		"a null rule":                {`{"rules":[null]}`, `object has missing required properties (["action","rulePriority","selection"])`},
		"a member of a rule":         {`{"rules":[{"rulePriority":1,"selection":{},"action":{},"name":"x"}]}`, `object instance has properties which are not allowed by the schema: (["name"])`},
		"an action of no type":       {one(all, ""), `object has missing required properties (["type"])`},
		"another action":             {one(all, `"type":"keep"`), `instance value ("keep") not found in enum (possible values: ["expire","transition"])`},
		"a storage class of null":    {one(all, `"type":"expire","targetStorageClass":null`), noSchema},
		"a transition to nowhere":    {one(all, `"type":"transition"`), noSchema},
		"an empty selection":         {one("", expire), `object has missing required properties (["countNumber","countType","tagStatus"])`},
		"a member of a selection":    {one(all+`,"tags":[]`, expire), `object instance has properties which are not allowed by the schema: (["tags"])`},
		"another tag status":         {one(`"tagStatus":"TAGGED","countType":"imageCountMoreThan","countNumber":9`, expire), `instance value ("TAGGED") not found in enum (possible values: ["any","tagged","untagged"])`},
		"another count":              {one(`"tagStatus":"any","countType":"bytes","countNumber":9`, expire), noSchema},
		"a count of text":            {one(`"tagStatus":"any","countType":"imageCountMoreThan","countNumber":"9"`, expire), noSchema},
		"a count of zero":            {one(`"tagStatus":"any","countType":"imageCountMoreThan","countNumber":0`, expire), "numeric instance is lower than the required minimum (minimum: 1, found: 0)"},
		"a count of images, in days": {one(all+`,"countUnit":"days"`, expire), noSchema},
		"days without the unit":      {one(`"tagStatus":"any","countType":"sinceImagePushed","countNumber":1`, expire), noSchema},
		"expired by the last pull":   {one(`"tagStatus":"any","countType":"sinceImagePulled",`+days, expire), noSchema},
		"tagged, but how":            {one(tagged, expire), "Must specify tagPrefixList or tagPatternList when tagStatus=TAGGED."},
		"untagged with a prefix":     {one(untagged+`,"tagPrefixList":["v"]`, expire), "Cannot specify tagPrefixList or tagPatternList when tagStatus=UNTAGGED."},
		"prefix and pattern":         {one(tagged+`,"tagPrefixList":["v"],"tagPatternList":["v*"]`, expire), "Cannot specify both tagPrefixList and tagPatternList."},
		"five wildcards":             {one(tagged+`,"tagPatternList":["*a*b*c*d*"]`, expire), "A tag pattern has at most 4 wildcards."},
		"a priority of zero":         {`{"rules":[` + lifecycleRule("0", all, expire) + `]}`, "numeric instance is lower than the required minimum (minimum: 1, found: 0)"},
		"one priority twice":         {`{"rules":[` + lifecycleRule("1", untagged, expire) + `,` + lifecycleRule("1", all, expire) + `]}`, "Rules must have unique priorities."},
		"untagged twice":             {`{"rules":[` + lifecycleRule("1", untagged, expire) + `,` + lifecycleRule("2", untagged, expire) + `]}`, "Only one rule can select Untagged images per storage class"},
		"any before others":          {`{"rules":[` + lifecycleRule("1", all, expire) + `,` + lifecycleRule("2", untagged, expire) + `]}`, "Rule for tagStatus=ANY must have the lowest priority per storage class"},
		"any after others":           {`{"rules":[` + lifecycleRule("2", all, expire) + `,` + lifecycleRule("1", untagged, expire) + `]}`, ""},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, tables.CheckLifecycle(c.text)) })
	}
}

func TestPolicies(t *testing.T) {
	const statement = `"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":["ecr:*"]`
	for name, c := range map[string]struct {
		text                 string
		repository, registry bool
	}{
		"of a repository":        {`{"Statement":[{` + statement + `}]}`, true, false},
		"of a registry":          {`{"Version":"2012-10-17","Statement":[{"Sid":"a",` + statement + `,"Resource":"*"}]}`, false, true},
		"one statement, no list": {`{"Version":"2008-10-17","Id":"x","Statement":{` + statement + `,"Condition":{}}}`, true, false},
		"what is not allowed":    {`{"Statement":[{"Effect":"Deny","NotPrincipal":"*","NotAction":"ecr:PutImage"}]}`, true, false},
		"no JSON":                {"Allow", false, false},
		"null":                   {"null", false, false},
		"no statement":           {`{"Version":"2012-10-17"}`, false, false},
		"null statement":         {`{"Statement":null}`, false, false},
		"an empty list":          {`{"Statement":[]}`, false, false},
		"an empty statement":     {`{"Statement":[{}]}`, false, false},
		"another version":        {`{"Version":"2026-01-01","Statement":[{` + statement + `}]}`, false, false},
		"another effect":         {`{"Statement":[{"Effect":"allow","Principal":"*","Action":"*"}]}`, false, false},
		"no principal":           {`{"Statement":[{"Effect":"Allow","Action":"*"}]}`, false, false},
		"no action":              {`{"Statement":[{"Effect":"Allow","Principal":"*"}]}`, false, false},
		"action and not action":  {`{"Statement":[{` + statement + `,"NotAction":"*"}]}`, false, false},
		"another member":         {`{"Statement":[{` + statement + `,"Actions":"*"}]}`, false, false},
		"names in another case":  {`{"statement":[{` + statement + `}]}`, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.repository, tables.IsPolicy(c.text, false))
			assert.Equal(t, c.registry, tables.IsPolicy(c.text, true))
		})
	}
}
