package conformance_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// notAnswered are the members of the SDK's outputs that ecrapi never sends, and why.
// A member stands for all below it.
var notAnswered = map[string]string{
	"DescribeImages.imageDetails.imageScanFindingsSummary":              "nothing is scanned",
	"DescribeImages.imageDetails.imageScanStatus":                       "nothing is scanned",
	"DescribeImages.imageDetails.lastActivatedAt":                       "nothing is archived",
	"DescribeImages.imageDetails.lastArchivedAt":                        "nothing is archived",
	"DescribeRegistry.replicationConfiguration.rules.destinations":      "nothing is replicated",
	"DescribeRegistry.replicationConfiguration.rules.repositoryFilters": "nothing is replicated",
	"ListImageReferrers.referrers.artifactStatus":                       "AWS was seen not to send it either",
}

// Each member that the SDK can send is one that ecrapi reads, and the other way
// round, with nothing lost.
func TestSDKInputsAreReadWhole(t *testing.T) {
	t.Parallel()
	eachOperation(t, func(t *testing.T, op operation) {
		in := op.input()
		fill(in, 1)
		body := op.sent(t, in)
		read := reflect.New(op.in)
		require.NoError(t, strictly(body, read.Interface()), "%s", body)
		assert.JSONEq(t, string(body), string(ours(t, read.Interface())))

		all := reflect.New(op.in)
		fill(all, 1)
		assert.Equal(t, members(t, body), members(t, ours(t, all.Interface())))
	})
}

// Each member that ecrapi can send is one that the SDK reads, and the other way round
// but for those that are never answered, with nothing lost.
func TestSDKOutputsAreReadWhole(t *testing.T) {
	t.Parallel()
	eachOperation(t, func(t *testing.T, op operation) {
		all := reflect.New(op.out)
		fill(all, 1)
		body := ours(t, all.Interface())
		assert.JSONEq(t, string(body), string(sdkJSON(t, op.received(t, body))))

		theirs := op.output()
		fill(theirs, 1)
		body = sdkJSON(t, theirs.Interface().(smithy.Serializable))
		for missing := range notAnswered {
			if member, ok := strings.CutPrefix(missing, op.name+"."); ok {
				assert.Contains(t, members(t, body), member, "an exception that nothing needs")
			}
		}
		body = op.withoutUnanswered(t, body)
		read := reflect.New(op.out)
		require.NoError(t, strictly(body, read.Interface()))
		assert.JSONEq(t, string(body), string(ours(t, read.Interface())))
	})
}

// members are the paths of all members in a JSON object: "images.imageId.imageTag".
// Lists are left out of paths, the keys of maps are not.
func members(t *testing.T, body []byte) []string {
	t.Helper()
	var v any
	require.NoError(t, json.Unmarshal(body, &v))
	paths := map[string]bool{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				path := strings.TrimPrefix(at+"."+name, ".")
				paths[path] = true
				walk(path, member)
			}
		case []any:
			for _, item := range v {
				walk(at, item)
			}
		}
	}
	walk("", v)
	return slices.Sorted(maps.Keys(paths))
}

// fill sets everything below v that can be set, each leaf to a value of its own,
// none of them zero. It returns the seed of the next.
func fill(v reflect.Value, seed int) int {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return fill(v.Elem(), seed)
	case reflect.String:
		v.SetString(fmt.Sprintf("<%d> & \"é\u2028\"", seed))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(int64(seed))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		return fill(v.Index(1), fill(v.Index(0), seed))
	case reflect.Map:
		item := reflect.New(v.Type().Elem()).Elem()
		next := fill(item, seed)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), item)
		return next
	case reflect.Struct:
		return fillStruct(v, seed)
	default:
		panic("a kind that no member has: " + v.Type().String())
	}
	return seed + 1
}

func fillStruct(v reflect.Value, seed int) int {
	if at, ok := v.Addr().Interface().(*time.Time); ok {
		*at = time.UnixMilli(946684800_000 + int64(seed)).UTC()
		return seed + 1
	}
	for i := range v.NumField() {
		if v.Field(i).CanSet() && v.Type().Field(i).Name != "ResultMetadata" {
			seed = fill(v.Field(i), seed)
		}
	}
	return seed
}
