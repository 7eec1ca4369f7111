package debug

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
)

// serveMetrics answers in Prometheus's text format, version 0.0.4. The labels are at most
// 100 rule prefixes and our own words. No label is a name that a client has chosen.
func (p *Page) serveMetrics(w http.ResponseWriter) {
	downloads, readers := inFlight(p.downloads())
	waiting, more := p.pending("")
	p.mu.Lock()
	c := p.counters.copy()
	p.mu.Unlock()

	m := &metrics{}
	c.writeRequests(m)
	c.writeFetches(m)
	m.family("sent_bytes_total", "counter", "Bytes of bodies that the connections of clients have taken.")
	m.sample("sent_bytes_total", p.sent())
	m.family("store_failures_total", "counter", "Failures of the Store; the pulls went on without it.")
	m.sample("store_failures_total", c.store)
	m.family("warnings_total", "counter", "Warnings that upstream registries sent along.")
	m.sample("warnings_total", c.warnings)
	m.family("anonymous_fetches_total", "counter", "Fetches that went without credentials, which had been refused.")
	m.sample("anonymous_fetches_total", c.anon)
	m.family("wrong_digests_total", "counter", "Manifests for which upstream named another digest than their content has.")
	m.sample("wrong_digests_total", c.wrong)
	m.family("pending", "gauge", "What waits for an upstream registry: requests that it holds back, pauses of checks, images to import, fetches whose clients have left.")
	m.sample("pending", int64(len(waiting)+more))
	m.family("downloads_running", "gauge", "Blobs on their way from upstream.")
	m.sample("downloads_running", int64(downloads))
	m.family("download_readers", "gauge", "Clients that read a blob from its download.")
	m.sample("download_readers", int64(readers))

	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(m.Bytes()) // it fails only if the client has gone
}

func (c *counters) writeRequests(m *metrics) {
	m.family("requests_total", "counter", "Requests by where their answer came from; none: they failed.")
	for i, object := range objects {
		for j, source := range sources {
			m.sample("requests_total", c.answers[i][j], "object", string(object), "source", source.String())
		}
		m.sample("requests_total", sum(c.failed[i][:]), "object", string(object), "source", "none")
	}
	m.family("head_requests_total", "counter", "Requests that only checked for existence.")
	for i, object := range objects {
		m.sample("head_requests_total", c.heads[i], "object", string(object))
	}
	m.family("request_failures_total", "counter", "Requests that failed, by the kind of failure.")
	for i, object := range objects {
		for j, f := range failures {
			m.sample("request_failures_total", c.failed[i][j], "object", string(object), "kind", f.name)
		}
	}
	m.family("bytes_total", "counter", "Length of the content that was answered with, whole, whatever part was read.")
	for i, object := range objects {
		for j, source := range sources {
			m.sample("bytes_total", c.bytes[i][j], "object", string(object), "source", source.String())
		}
	}
}

func (c *counters) writeFetches(m *metrics) {
	prefixes := c.prefixes()
	m.family("fetches_total", "counter", "Fetches from upstream, by the prefix of their rule and how they ended.")
	for _, prefix := range prefixes {
		r := c.rules[prefix]
		for i, object := range objects {
			m.sample("fetches_total", r.fetched[i], "rule", prefix, "object", string(object), "outcome", "ok")
			for j, f := range failures {
				if n := r.failed[i][j]; n > 0 {
					m.sample("fetches_total", n, "rule", prefix, "object", string(object), "outcome", f.name)
				}
			}
		}
	}
	m.family("fetched_bytes_total", "counter", "Length of the content that was fetched.")
	for _, prefix := range prefixes {
		for i, object := range objects {
			m.sample("fetched_bytes_total", c.rules[prefix].bytes[i], "rule", prefix, "object", string(object))
		}
	}
	m.family("upstream_requests_total", "counter", "Requests that fetches made to upstream, tokens included.")
	for _, prefix := range prefixes {
		m.sample("upstream_requests_total", c.rules[prefix].requests, "rule", prefix)
	}
	m.family("fetch_duration_seconds", "summary", "How long fetches took until they were committed or had failed.")
	for _, prefix := range prefixes {
		r := c.rules[prefix]
		m.sample("fetch_duration_seconds_sum", r.took.Seconds(), "rule", prefix)
		m.sample("fetch_duration_seconds_count", sum(r.fetched[:])+r.failures(), "rule", prefix)
	}
}

// metrics builds the text of the metrics.
type metrics struct{ bytes.Buffer }

func (m *metrics) family(name, kind, help string) {
	fmt.Fprintf(m, "# HELP pullthrough_%s %s\n# TYPE pullthrough_%s %s\n", name, help, name, kind)
}

// escapeLabel escapes the value of a label as the format requires.
var escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// sample writes one line. labels alternate between names and values.
func (m *metrics) sample(name string, value any, labels ...string) {
	fmt.Fprintf(m, "pullthrough_%s", name)
	for i := 0; i < len(labels); i += 2 {
		open := ","
		if i == 0 {
			open = "{"
		}
		fmt.Fprintf(m, `%s%s="%s"`, open, labels[i], escapeLabel.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		m.WriteByte('}')
	}
	fmt.Fprintf(m, " %v\n", value)
}
