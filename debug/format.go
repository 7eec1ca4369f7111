package debug

import (
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// The values of the parameter format. The path and Accept choose among the same formats.
const (
	formatHTML    = "html"
	formatJSON    = "json"
	formatMetrics = "prometheus"
)

// formatOf returns the format that r asks for. An unknown value of the parameter is
// returned as it is.
func formatOf(r *http.Request) string {
	if format := r.URL.Query().Get("format"); format != "" {
		return format
	}
	if path.Base(r.URL.Path) == "metrics" {
		return formatMetrics
	}
	return preferredFormat(r.Header.Values("Accept"))
}

// preferredFormat returns the format that Accept names with the highest weight, and the
// first of those with equal weights (RFC 9110, section 12.5.1). Ranges with an asterisk
// are ignored: a client that accepts everything gets the HTML page.
func preferredFormat(values []string) string {
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

// setHeaders sets the headers of every answer. No answer is cached or used by another
// origin, it cannot be framed, and it runs and loads nothing but our own script and style.
func setHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", securityPolicy())
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
}
