package debug

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"sync"

	"github.com/opencontainers/go-digest"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// pageTemplate is the page's template. page.js updates the page later and uses the same
// words.
var pageTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"css":   func() template.CSS { return template.CSS(pageCSS) },
		"js":    func() template.JS { return template.JS(pageJS) },
		"count": countText[int64],
		"bytes": bytesText, "took": durationText, "clock": clockText, "stamp": stampText,
		"share": shareText, "short": shortText[digest.Digest], "tiles": tilesOf, "what": entry.label, "badge": entry.badge,
		"facts": download.facts, "inOrder": download.inOrder, "left": download.barPosition, "registry": registryText, "lines": entry.lines,
		"none": (*state).none, "chart": shownChart.json,
		"awaits": pending.what, "awaitsOf": pending.of, "awaitsFor": pending.why, "awaitsTry": pending.next,
		"name": entry.name, "pin": place.pin, "plural": pluralText[int],
	}).Parse(pageHTML))
})

// securityPolicy returns the Content-Security-Policy. It allows the page's own script and
// style, by their hashes, and requests to the page's own origin.
var securityPolicy = sync.OnceValue(func() string {
	return "default-src 'none'; script-src " + hashOf(pageJS) + "; style-src " + hashOf(pageCSS) +
		"; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
})

func hashOf(text string) string {
	hash := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
}

func (p *Page) serveHTML(w http.ResponseWriter, r *http.Request) {
	var page bytes.Buffer
	if err := pageTemplate().Execute(&page, p.state(r)); err != nil {
		http.Error(w, "the page could not be written", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(page.Bytes()) // it fails only if the client has gone
}
