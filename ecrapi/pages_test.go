package ecrapi_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// list is an operation that answers in pages.
type list struct {
	op, create, remove string
	member             string // of a request of create and remove
	items              string // of an answer
	key                string // of an item; "": items are strings
	rest               string // of a request of create
}

var lists = []list{
	{"DescribePullThroughCacheRules", "CreatePullThroughCacheRule", "DeletePullThroughCacheRule", "ecrRepositoryPrefix", "pullThroughCacheRules", "ecrRepositoryPrefix", `"upstreamRegistryUrl":"quay.io"`},
	{"DescribeRepositoryCreationTemplates", "CreateRepositoryCreationTemplate", "DeleteRepositoryCreationTemplate", "prefix", "repositoryCreationTemplates", "prefix", `"appliedFor":[]`},
	{"ListPullTimeUpdateExclusions", "RegisterPullTimeUpdateExclusion", "DeregisterPullTimeUpdateExclusion", "principalArn", "pullTimeUpdateExclusions", "", `"x":1`},
}

// name is the nth item's: not in the order of n.
func (l list) name(n int) string {
	name := fmt.Sprintf("%c%d", 'z'-n%26, n)
	if l.key == "" {
		return "arn:aws:iam::123456789012:role/" + name
	}
	return name
}

func (l list) add(t *testing.T, c *client, name string) {
	t.Helper()
	resp, body := c.send(t, target+l.create, `{"`+l.member+`":"`+name+`",`+l.rest+`}`)
	require.Equal(t, 200, resp.StatusCode, body)
}

// page asks for one page.
func (l list) page(t *testing.T, c *client, request string) (names []string, next string) {
	t.Helper()
	resp, body := c.send(t, target+l.op, request)
	require.Equal(t, 200, resp.StatusCode, body)
	members := parse(t, body)
	items, ok := members[l.items].([]any)
	require.True(t, ok, "%s is a list, also where it is empty: %s", l.items, body)
	for _, item := range items {
		if l.key != "" {
			item = item.(map[string]any)[l.key]
		}
		names = append(names, item.(string))
	}
	token, there := members["nextToken"]
	if there {
		next, _ = token.(string)
		assert.NotEmpty(t, next, "absent on the last page")
	}
	return names, next
}

func TestPages(t *testing.T) {
	for _, l := range lists {
		t.Run(l.op, func(t *testing.T) {
			c := start(t, &ecrapi.API{})
			names, next := l.page(t, c, "{}")
			assert.Empty(t, names)
			assert.Empty(t, next)
			var want []string
			for n := range 23 {
				want = append(want, l.name(n))
				l.add(t, c, l.name(n))
			}
			slices.Sort(want)
			for _, size := range []int{1, 2, 22, 23, 24, 1000} {
				var got []string
				pages, token := 0, ""
				for {
					request, err := json.Marshal(map[string]any{"maxResults": size, "nextToken": token})
					require.NoError(t, err)
					names, next := l.page(t, c, string(request))
					assert.LessOrEqual(t, len(names), size)
					got = append(got, names...)
					pages++
					if token = next; token == "" || !assert.LessOrEqual(t, pages, 23) {
						break
					}
				}
				assert.Equal(t, want, got, "in bytewise order, each once, with pages of %d", size)
				assert.Equal(t, (23+size-1)/size, pages)
			}
		})
	}
}

func TestAPageHas100ItemsByDefault(t *testing.T) {
	c := start(t, &ecrapi.API{})
	l := lists[1]
	for n := range 100 {
		l.add(t, c, l.name(n))
	}
	names, next := l.page(t, c, "{}")
	assert.Len(t, names, 100)
	assert.Empty(t, next)
}

// A page begins after the last item of the one before, whatever became of that.
func TestPagesWhileTheListChanges(t *testing.T) {
	for _, l := range lists {
		t.Run(l.op, func(t *testing.T) {
			c := start(t, &ecrapi.API{})
			var all []string
			for n := range 6 {
				all = append(all, l.name(n))
				l.add(t, c, l.name(n))
			}
			slices.Sort(all)
			_, next := l.page(t, c, `{"maxResults":2}`)
			resp, body := c.send(t, target+l.remove, object(l.member, all[1]))
			require.Equal(t, 200, resp.StatusCode, body)
			names, next := l.page(t, c, `{"maxResults":2,"nextToken":"`+next+`"}`)
			assert.Equal(t, all[2:4], names)
			for _, name := range all[4:] {
				_, _ = c.send(t, target+l.remove, object(l.member, name))
			}
			names, next = l.page(t, c, `{"maxResults":2,"nextToken":"`+next+`"}`)
			assert.Empty(t, names)
			assert.Empty(t, next)
		})
	}
}

const sayBadToken = "Member must be a token that this operation has returned"

func TestTokensOfOthers(t *testing.T) {
	c := start(t, &ecrapi.API{})
	tokens := map[string]string{}
	for _, l := range lists {
		for n := range 3 {
			l.add(t, c, l.name(n))
		}
		_, tokens[l.op] = l.page(t, c, `{"maxResults":1}`)
		require.NotEmpty(t, tokens[l.op])
	}
	garbage := []string{"x", "%%%", "....", "=", "AAAA", "null", "1", " ", strings.Repeat("A", 100_000), "日本", base64.RawURLEncoding.EncodeToString([]byte("\x00\xff"))}
	for _, l := range lists {
		for op, token := range tokens {
			if op != l.op {
				garbage = append(garbage, token)
			}
		}
		garbage = append(garbage, tokens[l.op]+"=", tokens[l.op]+"!", "x"+tokens[l.op])
		for _, token := range garbage {
			if token == tokens[l.op] {
				continue
			}
			c.fails(t, l.op, object("nextToken", token), "InvalidParameterException", constraint("nextToken", sayBadToken))
		}
	}
}

// token-with-filter: refused.
func TestATokenDoesNotGoWithAFilter(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, l := range lists[:2] {
		l.add(t, c, "aaa")
		l.add(t, c, "bbb")
		_, next := l.page(t, c, `{"maxResults":1}`)
		filter := map[string]string{"pullThroughCacheRules": "ecrRepositoryPrefixes", "repositoryCreationTemplates": "prefixes"}[l.items]
		c.fails(t, l.op, `{"nextToken":"`+next+`","`+filter+`":["aaa"]}`, "InvalidParameterException", "A nextToken cannot be used together with "+filter+".")
		names, next := l.page(t, c, `{"nextToken":"","maxResults":1,"`+filter+`":["bbb","aaa"]}`)
		assert.Equal(t, []string{"aaa", "bbb"}, names)
		assert.Empty(t, next)
	}
}

func TestPageSizes(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, l := range lists {
		for _, size := range []string{"0", "-1"} {
			c.fails(t, l.op, `{"maxResults":`+size+`}`, "InvalidParameterException", constraint("maxResults", "Member must have value greater than or equal to 1"))
		}
		c.fails(t, l.op, `{"maxResults":1001}`, "InvalidParameterException", constraint("maxResults", "Member must have value less than or equal to 1000"))
	}
}

// FuzzNextToken: a token is anything, and nothing but an answer or an
// InvalidParameterException comes of it.
func FuzzNextToken(f *testing.F) {
	for _, seed := range []string{"", "x", base64.RawURLEncoding.EncodeToString([]byte("ListPullTimeUpdateExclusions arn")), "====", "\x00"} {
		f.Add(seed)
	}
	api := &ecrapi.API{}
	f.Fuzz(func(t *testing.T, token string) {
		_, err := api.ListPullTimeUpdateExclusions(t.Context(), identity(""), ecrapi.ListPullTimeUpdateExclusionsInput{NextToken: &token})
		if err != nil {
			assert.ErrorIs(t, err, &ecrapi.Error{Code: "InvalidParameterException"})
		}
	})
}
