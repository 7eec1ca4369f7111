package pullthroughtest

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Script applies one step to each request that matches, in order. match is a pattern as in [Upstream.Count]. Requests
// after the last step are answered normally. A step that cannot be parsed fails the test. The function that Script
// returns removes the remaining steps.
//
//	up.Script(t, "GET /v2/app/blobs/*", "status 503, retry-after 1; after 65536 cut; flip -1; ok; stall")
//
// Steps are separated by semicolons, and the parts of a step by commas. "3 times" before a step repeats it. The parts
// are:
//
//	ok                    nothing: the request is answered normally
//	status N              this status, with an OCI error from 300 on
//	retry-after N         seconds to wait, or a date
//	type T                another Content-Type; "type" alone: none
//	digest D              another Docker-Content-Digest; "digest wrong": the digest of other content
//	header NAME: VALUE    any other header
//	body TEXT             this body in place of the real one
//	redirect URL          a redirect to this URL; {path} is the request's path
//	flip K                flips a bit of the byte at K, from the end if negative
//	truncate N, extend N  N bytes less or more than declared
//	no-length             without Content-Length
//	trickle N             N bytes of body per second
//	cut, reset, stall     closes or resets the connection, or sends nothing more until the client has gone: before the
//	                      answer begins, or after N bytes of the body if written as "after N cut"
//	goaway                an HTTP/2 GOAWAY that still answers the request's stream; also "after N goaway"
func (u *Upstream) Script(t testing.TB, match, steps string) (heal func()) {
	t.Helper()
	all, err := parseSteps(steps)
	if err != nil {
		t.Fatalf("pullthroughtest: %v", err)
	}
	var healers []func()
	for _, fault := range all {
		fault.Match, fault.Times = match, max(fault.Times, 1)
		healers = append(healers, u.Fault(fault))
	}
	return func() {
		for _, heal := range healers {
			heal()
		}
	}
}

// parseSteps parses a script. Times of a step is how often it is repeated; 0 means once.
func parseSteps(script string) (steps []Fault, err error) {
	for i, text := range strings.Split(script, ";") {
		var f Fault
		text = strings.TrimSpace(text)
		if n, step, ok := strings.Cut(text, " times "); ok {
			if f.Times, err = strconv.Atoi(n); err != nil || f.Times < 1 {
				return nil, fmt.Errorf("step %d: %q: want a number before times", i+1, text)
			}
			text = step
		}
		for part := range strings.SplitSeq(text, ",") {
			if err := f.addPart(strings.TrimSpace(part)); err != nil {
				return nil, fmt.Errorf("step %d: %q: %w", i+1, part, err)
			}
		}
		steps = append(steps, f)
	}
	return steps, nil
}

// addPart adds one part of a step.
func (f *Fault) addPart(part string) error {
	name, arg, _ := strings.Cut(part, " ")
	arg = strings.TrimSpace(arg)
	if name == "after" {
		n, what, _ := strings.Cut(arg, " ")
		at, err := size(n)
		if err != nil {
			return err
		}
		return f.addEnd(strings.TrimSpace(what), &at)
	}
	if add, ok := partsWithText[name]; ok {
		return add(f, arg)
	}
	if add, ok := partsWithNumber[name]; ok {
		n, err := strconv.ParseInt(arg, 10, 64)
		if err != nil {
			return fmt.Errorf("%s wants a number, not %q", name, arg)
		}
		return add(f, n)
	}
	if arg != "" {
		return fmt.Errorf("there is no part %q with %q behind it", name, arg)
	}
	switch name {
	case "ok":
		return nil
	case "no-length":
		f.NoLength = true
		return nil
	}
	return f.addEnd(name, nil)
}

// addEnd adds a part that takes effect at an offset; nil: before the answer begins.
func (f *Fault) addEnd(name string, at *int64) error {
	switch name {
	case "cut", "reset":
		f.CutAfter, f.Reset = at, name == "reset"
		if at == nil {
			f.CutAfter = new(int64(-1))
		}
	case "stall":
		f.Stall, f.StallAfter = make(chan struct{}), at // nobody closes the channel: it stalls until the client has gone
	case "goaway":
		f.Raw, f.RawAfter = GoAway(math.MaxInt32, 0), at
	default:
		return fmt.Errorf("there is no part %q", name)
	}
	return nil
}

var partsWithNumber = map[string]func(*Fault, int64) error{
	"flip": func(f *Fault, n int64) error { f.Flip = &n; return nil },
	"status": func(f *Fault, n int64) error {
		f.Status = int(n)
		return checkRange(n, 200, 599)
	},
	"truncate": func(f *Fault, n int64) error { f.Truncate = n; return checkRange(n, 1, math.MaxInt64) },
	"extend":   func(f *Fault, n int64) error { f.Extend = n; return checkRange(n, 1, math.MaxInt64) },
	"trickle":  func(f *Fault, n int64) error { f.Rate = n; return checkRange(n, 1, math.MaxInt64) },
}

var partsWithText = map[string]func(*Fault, string) error{
	"retry-after": func(f *Fault, v string) error { return f.setHeader("Retry-After", v) },
	"type":        func(f *Fault, v string) error { return f.setHeader("Content-Type", v) },
	"digest": func(f *Fault, v string) error {
		if v == "wrong" {
			v = digest.FromString("the digest of other content").String()
		}
		return f.setHeader("Docker-Content-Digest", v)
	},
	"header": func(f *Fault, v string) error {
		name, value, ok := strings.Cut(v, ":")
		if !ok {
			return fmt.Errorf("want NAME: VALUE, not %q", v)
		}
		return f.setHeader(strings.TrimSpace(name), strings.TrimSpace(value))
	},
	"body":     func(f *Fault, v string) error { f.Body = []byte(v); return nil },
	"redirect": func(f *Fault, v string) error { f.Redirect = v; return nil },
}

func (f *Fault) setHeader(name, value string) error {
	if f.Header == nil {
		f.Header = http.Header{}
	}
	f.Header[http.CanonicalHeaderKey(name)] = []string{value}
	return nil
}

func size(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("after wants a number of bytes, not %q", s)
	}
	return n, checkRange(n, 0, math.MaxInt64)
}

func checkRange(n, low, high int64) error {
	if n < low || n > high {
		return fmt.Errorf("%d is out of range", n)
	}
	return nil
}
