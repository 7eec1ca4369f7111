package debug_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
)

func metricsOf(t *testing.T, page http.Handler) map[string]float64 {
	t.Helper()
	w := get(t, page, "/debug/pullthrough/metrics")
	assert.Equal(t, "text/plain; version=0.0.4; charset=utf-8", w.Header().Get("Content-Type"))
	return parseMetrics(t, w.Body.String())
}

var (
	metricName = regexp.MustCompile(`^pullthrough_[a-z_]+$`)
	labelPair  = regexp.MustCompile(`^([a-z_]+)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)`)
)

// parseMetrics reads the text format strictly: each family has its HELP, its TYPE
// and then its samples, all in one place, and no series stands there twice. The
// keys are the samples as they are written.
func parseMetrics(t *testing.T, text string) map[string]float64 {
	t.Helper()
	series, families := map[string]float64{}, map[string]bool{}
	require.True(t, strings.HasSuffix(text, "\n"))
	var name, kind string
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "# HELP "):
			var help string
			name, help, _ = strings.Cut(strings.TrimPrefix(line, "# HELP "), " ")
			require.Regexp(t, metricName, name)
			require.NotEmpty(t, help)
			require.False(t, families[name], "%s stands there twice", name)
			families[name], kind = true, ""
		case strings.HasPrefix(line, "# TYPE "):
			kind = strings.TrimPrefix(line, "# TYPE "+name+" ")
			require.Contains(t, []string{"counter", "gauge", "summary"}, kind)
			require.Equal(t, kind == "counter", strings.HasSuffix(name, "_total"), "%s", name)
		default:
			require.NotEmpty(t, kind, "a sample before its TYPE: %s", line)
			key, value := parseSample(t, line, name, kind)
			require.NotContains(t, series, key)
			series[key] = value
		}
	}
	return series
}

func parseSample(t *testing.T, line, family, kind string) (string, float64) {
	t.Helper()
	i := strings.LastIndexByte(line, ' ')
	require.Positive(t, i)
	key := line[:i]
	name, labels, labelled := strings.Cut(key, "{")
	if kind == "summary" {
		require.Contains(t, []string{family + "_sum", family + "_count"}, name)
	} else {
		require.Equal(t, family, name)
	}
	if labelled {
		require.True(t, strings.HasSuffix(labels, "}"), "%s", line)
		labels = strings.TrimSuffix(labels, "}")
		for seen := map[string]bool{}; labels != ""; {
			m := labelPair.FindStringSubmatch(labels)
			require.NotNil(t, m, "%s", line)
			require.False(t, seen[m[1]])
			seen[m[1]], labels = true, labels[len(m[0]):]
		}
	}
	value, err := strconv.ParseFloat(line[i+1:], 64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, value, 0.0)
	return key, value
}

func TestMetricsNameNoRepositoryAndFewRules(t *testing.T) {
	page := &debug.Page{}
	for i := range 1000 {
		page.Record(t.Context(), pullthrough.Event{
			Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Rule: fmt.Sprint("rule-", i), Upstream: 2,
			Request: pullthrough.Request{Repo: pullthrough.Repo{Account: fmt.Sprint("account-", i), Name: "secret-project"}, Ref: "secret-tag"},
		})
	}
	text := get(t, page, "/metrics").Body.String()
	assert.NotContains(t, text, "secret-")
	assert.NotContains(t, text, "account-")
	series := parseMetrics(t, text)
	assert.Less(t, len(series), 1200)
	assert.EqualValues(t, 2, series[`pullthrough_upstream_requests_total{rule="rule-7"}`])
	assert.EqualValues(t, 2*900, series[`pullthrough_upstream_requests_total{rule="(other)"}`])
}

func TestLabelsAreEscaped(t *testing.T) {
	page := &debug.Page{}
	for _, rule := range []string{"a\"} 1\npullthrough_evil 2", `back\slash`, "\xff\xfe", ""} {
		page.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Rule: rule, Upstream: 1})
	}
	series := metricsOf(t, page)
	for _, label := range []string{`a\"} 1�pullthrough_evil 2`, `back\\slash`, `��`, ``} {
		assert.Contains(t, series, `pullthrough_upstream_requests_total{rule="`+label+`"}`)
	}
}
