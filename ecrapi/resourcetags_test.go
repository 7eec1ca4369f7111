package ecrapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/memstore"
)

const (
	sayTag      = "An invalid parameter has been specified. Tag keys can have a maximum character length of 128 characters, and tag values can have a maximum length of 256 characters."
	sayManyTags = "The list of tags on the repository is over the limit. The maximum number of tags that can be applied to a repository is 50."
)

func manyTags(n int) string {
	tags := make([]string, n)
	for i := range tags {
		tags[i] = fmt.Sprintf(`{"Key":"k%02d","Value":""}`, i)
	}
	return strings.Join(tags, ",")
}

func TestTagsOfARepository(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.template(t, `"resourceTags":[{"Key":"team","Value":"a"}],"customRoleArn":"`+role+`"`)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	about := `{"resourceArn":"` + arn("hub/a") + `"`
	list := func(want string) {
		t.Helper()
		r.ok(t, "ListTagsForResource", about+`}`, `{"tags":[`+want+`]}`)
	}
	list(`{"Key":"team","Value":"a"}`)
	r.ok(t, "TagResource", about+`,"tags":[{"Key":"team","Value":"b"},{"Key":"Cost","Value":""}]}`, `{}`)
	list(`{"Key":"Cost","Value":""},{"Key":"team","Value":"b"}`)
	for tags, want := range map[string][2]string{
		`{"Key":"a","Value":"b"},{"Key":"a","Value":"c"}`:        {"InvalidTagParameterException", sayTag},
		`{"Key":"","Value":""}`:                                  {"InvalidTagParameterException", sayTag},
		`{"Key":"AWS:x","Value":""}`:                             {"InvalidTagParameterException", sayTag},
		`{"Key":"` + strings.Repeat("k", 129) + `","Value":""}`:  {"InvalidTagParameterException", sayTag},
		`{"Key":"k","Value":"` + strings.Repeat("v", 257) + `"}`: {"InvalidTagParameterException", sayTag},
		`{"Value":"b"}`: {"InvalidParameterException", constraint("tags.1.member.key", mustNotBeNull)},
		manyTags(49):    {"TooManyTagsException", sayManyTags},
	} {
		r.fails(t, "TagResource", about+`,"tags":[`+tags+`]}`, want[0], want[1])
	}
	r.fails(t, "TagResource", about+`}`, "InvalidParameterException", constraint("tags", mustNotBeNull))
	r.fails(t, "UntagResource", about+`}`, "InvalidParameterException", constraint("tagKeys", mustNotBeNull))
	r.fails(t, "UntagResource", about+`,"tagKeys":["aws:a"]}`, "InvalidTagParameterException", sayTag)
	r.ok(t, "UntagResource", about+`,"tagKeys":["team","TEAM","gone"]}`, `{}`)
	list(`{"Key":"Cost","Value":""}`)
	r.ok(t, "TagResource", about+`,"tags":[`+manyTags(49)+`]}`, `{}`)
}

func TestResourcesThatAreNoRepositories(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for _, broken := range []string{
		"", "hub/a", "arn:aws:ecr:us-east-1:123456789012:repository/", "arn:aws:ecr:us-east-1:123456789012:registry/hub/a", "arn:aws:s3:::bucket",
		"arn:aws:ecr:eu-west-1:123456789012:repository/hub/a", "arn:aws:ecr:us-east-1:12:repository/hub/a", "arn:aws:ecr:us-east-1:123456789012:repository/A",
	} {
		r.fails(t, "ListTagsForResource", object("resourceArn", broken), "InvalidParameterException", constraint("resourceArn", "Invalid ARN"))
	}
	for _, op := range []string{"ListTagsForResource", "TagResource", "UntagResource"} {
		r.fails(t, op, `{}`, "InvalidParameterException", constraint("resourceArn", mustNotBeNull))
	}
	require.Empty(t, r.up.Log())
}
