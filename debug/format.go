package debug

import (
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// The parameter format, and what stands for it elsewhere.
const (
	formatHTML    = "html"
	formatJSON    = "json"
	formatMetrics = "prometheus"
)

// formatOf is what r asks for; what it is not if the parameter is another word.
func formatOf(r *http.Request) string {
	if format := r.URL.Query().Get("format"); format != "" {
		return format
	}
	if path.Base(r.URL.Path) == "metrics" {
		return formatMetrics
	}
	return accepted(r.Header.Values("Accept"))
}

// accepted is the format that Accept names with the highest weight, of equal ones
// the first (RFC 9110, section 12.5.1). Ranges with a * choose nothing: who takes
// all gets the page.
func accepted(values []string) string {
	best, weight := formatHTML, 0.0
	for value := range strings.SplitSeq(strings.Join(values, ","), ",") {
		mediaType, params, err := mime.ParseMediaType(value)
		if err != nil {
			continue
		}
		q := 1.0
		if v, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(v, 64); err != nil || q > 1 {
				continue
			}
		}
		format := map[string]string{"text/html": formatHTML, "application/xhtml+xml": formatHTML, "application/json": formatJSON}[mediaType]
		if format != "" && q > weight {
			best, weight = format, q
		}
	}
	return best
}

// setHeaders sets what every answer has: it is for now, for this origin, and
// nothing in it runs, loads or is framed but what we wrote ourselves.
func setHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", securityPolicy())
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
}
