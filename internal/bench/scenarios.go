package main

import (
	"time"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// scenario is some work, who does it, and how well it should be done.
type scenario struct {
	name       string
	what       string   // what a round does
	contenders []string // alternatives among them run only if they are asked for
	rounds     int
	setup      func(*stage) job
	goals      []goal

	flags      []string                           // of fakeecr
	tls, http2 bool                               // what the upstream speaks; neither: HTTP/1.1 without TLS
	delay      time.Duration                      // of the upstream's answers, during the work
	fault      func(*bench) pullthroughtest.Fault // of the upstream, during the work; nil: none
	manyFiles  bool                               // directories stay until the end: right after many files were deleted, file systems are slow
}

const (
	mib = 1 << 20
	gib = 1 << 30
	// late is the delay of an upstream that is not on this machine.
	late = 20 * time.Millisecond
	// exact is 1 with room for refusals and tokens, which count as bytes.
	exact = 1.001
)

var (
	everyPull = []string{"-tag-ttl", "0"}
	four      = []string{"-connections", "4"}
	others    = alternatives
)

// scenarios are all there are. Rates are from the upstream, for each answer.
var scenarios = []scenario{
	{
		name: "handler", what: "a stored manifest by digest from the library's handler, without a network", rounds: 7,
		contenders: []string{handlerAlone}, setup: callHandler,
		goals: []goal{atMost(handlerAlone, seconds, 500e-9), atMost(handlerAlone, allocs, 2)},
	},
	{
		name: "manifest", what: "8,000 GETs of a stored manifest by digest, 32 at a time", rounds: 7,
		contenders: with([]string{inMemory, ours, "map", "library"}, distribution, nginx), setup: manifestHits(false, 32, 8000),
		goals: []goal{
			asFast(inMemory, 0.9, "map"), asFast(ours, 0.85, "map"), asFast(ours, 5, distribution),
			ratio(inMemory, cpu, 1.1, "map"), ratio(inMemory, cpu, 1.1, "library"), atMost(ours, requests, 0),
		},
	},
	{
		name: "tag", what: "the same by a tag that is fresh", rounds: 7,
		contenders: with([]string{inMemory, ours, "map"}, distribution, nginx), setup: manifestHits(true, 32, 8000),
		goals: []goal{asFast(inMemory, 0.9, "map"), asFast(ours, 0.85, "map"), atMost(ours, requests, 0)},
	},
	{
		name: "tag-alone", what: "500 GETs by a tag that is fresh, one after the other", rounds: 5,
		contenders: with([]string{ours, inMemory}, distribution, nginx), setup: manifestHits(true, 1, 500),
		goals: []goal{atMost(ours, eachTime, 0.0002), atMost(inMemory, eachTime, 0.0002)},
	},
	{
		name: "tag-due", what: "20 GETs by a tag that is due for its check, upstream 20 ms late", rounds: 5, flags: everyPull, delay: late,
		contenders: with([]string{ours, direct}, distribution), setup: manifestHits(true, 1, 20),
		goals: []goal{later(ours, firstByte, time.Millisecond, direct), atMost(ours, requests, 20)},
	},
	{
		name: "tag-due-32", what: "32 GETs at once by a tag that is due", rounds: 3, flags: everyPull, delay: late,
		contenders: []string{ours}, setup: manifestHits(true, 32, 32),
		goals: []goal{atMost(ours, requests, 1)},
	},
	{
		name: "tag-away", what: "5 GETs by a tag that is due, one after the other, while upstream does not answer", rounds: 3, flags: everyPull,
		contenders: []string{ours}, setup: manifestHits(true, 1, 5), fault: silence,
		goals: []goal{atMost(ours, slowest, 2.1), atMost(ours, firstByte, 0.001)},
	},
	{
		name: "blob", what: "8 GETs of a stored blob of 64 MiB over one connection", rounds: 7,
		contenders: with([]string{ours, "servecontent"}, distribution, nginx), setup: blobHits(1),
		goals: []goal{asFast(ours, 0.95, "servecontent"), ratio(ours, cpu, 1.1, "servecontent"), atMost(ours, requests, 0)},
	},
	{
		name: "blob-4", what: "the same over each of four connections", rounds: 5,
		contenders: with([]string{ours, "servecontent"}, distribution, nginx), setup: blobHits(4),
		goals: []goal{asFast(ours, 0.95, "servecontent"), ratio(ours, cpu, 1.1, "servecontent")},
	},
	{
		name: "cold", what: "a layer of 1 GiB that is not stored", rounds: 3,
		contenders: with([]string{ours, "copy", direct}, others...), setup: cold(gib, 1),
		goals: []goal{
			asFast(ours, 1.6, distribution), asFast(ours, 1.05, nginx), ratio(ours, cpu, 0.72, distribution), ratio(ours, cpu, 1.05, "copy"),
			atMost(ours, peak, 16*mib), atMost(ours, growth, 4*mib), atMost(ours, blobGets, 1), atMost(ours, bytesFrom, exact),
		},
	},
	{
		name: "cold-tls", what: "the same from an upstream with TLS", rounds: 3, tls: true,
		contenders: []string{ours, "discard", "copy"}, setup: cold(gib, 1), goals: append(secure, ratio(ours, cpu, 1.25, "copy")),
	},
	{
		name: "cold-http2", what: "the same from an upstream with HTTP/2", rounds: 3, http2: true,
		contenders: []string{ours, "discard", "copy"}, setup: cold(gib, 1), goals: append(secure, ratio(ours, cpu, 1.25, "copy")),
	},
	{
		name: "herd", what: "64 clients ask for one blob of 256 MiB that is not stored", rounds: 3,
		contenders: with([]string{ours, direct}, others...), setup: cold(256*mib, 64),
		goals: []goal{
			ratio(ours, seconds, 1.3, direct), ratio(ours, seconds, 0.5, distribution), ratio(ours, cpu, 0.22, distribution),
			atMost(ours, firstByte, 0.010), atMost(ours, first99, 0.075), atMost(ours, peak, 20*mib),
			atMost(ours, blobGets, 1), atMost(ours, bytesFrom, exact),
		},
	},
	{
		name: "herd-tls", what: "the same from an upstream with TLS", rounds: 3, tls: true,
		contenders: []string{ours, "discard"}, setup: cold(256*mib, 64), goals: secure,
	},
	{
		name: "herd-http2", what: "the same from an upstream with HTTP/2", rounds: 3, http2: true,
		contenders: []string{ours, "discard"}, setup: cold(256*mib, 64), goals: secure,
	},
	{
		name: "herd-slow", what: "64 clients ask for one blob of 16 MiB, 16 MiB/s", rounds: 5,
		contenders: with([]string{ours, direct}, others...), setup: cold(16*mib, 64), fault: rate(16 * mib),
		goals: []goal{ratio(ours, seconds, 1.01, direct), atMost(ours, blobGets, 1)},
	},
	{
		name: "connections", what: "a layer of 1 GiB that is not stored, over four connections, 64 MiB/s each", rounds: 3, flags: four,
		contenders: []string{ours, plainly, direct}, setup: cold(gib, 1), fault: rate(64 * mib), goals: faster4,
	},
	{
		name: "connections-herd", what: "64 clients ask for one blob of 256 MiB that is not stored, over four connections, 64 MiB/s each", rounds: 3, flags: four,
		contenders: []string{ours, plainly, direct}, setup: cold(256*mib, 64), fault: rate(64 * mib), goals: faster4,
	},
	{
		name: "manifests", what: "500 manifests in 50 repositories, none stored, upstream 20 ms late", rounds: 5, delay: late, manyFiles: true,
		contenders: with([]string{ours, inMemory, direct}, others...), setup: coldManifests,
		goals: []goal{
			ratio(inMemory, seconds, 1, direct), ratio(ours, seconds, 1, direct), ratio(ours, seconds, 1.1, inMemory),
			ratio(ours, cpu, 2, inMemory), atMost(ours, requests, 551),
		},
	},
	{
		name: "first-64k", what: "20 blobs of 64 KiB that are not stored, one after the other, upstream 20 ms late", rounds: 5, delay: late,
		contenders: with([]string{ours, direct}, others...), setup: firstBytes(64 << 10),
		goals: []goal{later(ours, firstByte, time.Millisecond, direct)},
	},
	{
		name: "first-1m", what: "the same with 1 MiB", rounds: 5, delay: late,
		contenders: with([]string{ours, direct}, others...), setup: firstBytes(mib),
		goals: []goal{later(ours, firstByte, time.Millisecond, direct)},
	},
	{
		name: "first-4m", what: "the same with 4 MiB", rounds: 5, delay: late,
		contenders: with([]string{ours, direct}, others...), setup: firstBytes(4 * mib),
		goals: []goal{later(ours, firstByte, time.Millisecond, direct)},
	},
	{
		name: "index", what: "10 repositories with an index of 3: the index by tag, then one platform of it; the first byte is the index's", rounds: 5,
		contenders: with([]string{ours, inMemory}, others...), setup: indexes,
		goals: []goal{atMost(ours, firstByte, 0.003), later(ours, firstByte, time.Millisecond, inMemory), atMost(ours, bytesFrom, 1.01)},
	},
	{
		name: "image", what: "an image of 20 layers that is not stored", rounds: 3,
		contenders: with([]string{ours}, others...), setup: image,
		goals: []goal{atMost(ours, requests, 24), atMost(ours, tokens, 1)},
	},
	{
		name: "far-range", what: "the last 64 KiB of a blob of 1 GiB that is not stored, and then all of it; the first byte is the range's", rounds: 3,
		contenders: []string{ours, direct}, setup: farRange,
		goals: []goal{later(ours, firstByte, 5*time.Millisecond, direct), atMost(ours, bytesFrom, 1.02+4./1024)},
	},
	{
		name: "lazy", what: "what a lazy puller reads to open a layer of 31 MiB that is not stored, 3 MiB/s: one byte, the footer, a table of contents of 64 KiB", rounds: 3,
		contenders: with([]string{ours, direct}, nginx, reverseProxy), setup: lazyOpen, fault: rate(3 * mib),
		goals: []goal{ratio(ours, seconds, 1.5, direct)},
	},
	{
		name: "cut", what: "a blob of 256 MiB, the connection cut after every 64 MiB", rounds: 3,
		contenders: with([]string{ours}, others...), setup: cold(256*mib, 1), fault: cut,
		goals: []goal{atMost(ours, blobGets, 4), atMost(ours, bytesFrom, exact)},
	},
	{
		name: "killed", what: "a blob of 1 GiB, 256 MiB/s; the server is killed after a quarter, two quarters and three, and started again", rounds: 3,
		contenders: []string{ours}, setup: killed, fault: rate(256 * mib),
		goals: []goal{atMost(ours, bytesFrom, 1.01)},
	},
}

// secure are the goals of what comes over TLS. The bound is a client that discards it, once
// for each client of ours. A copy, which like ours has to keep and to send it, is beside it.
var secure = []goal{ratio(ours, cpu, 1.25, "discard"), atMost(ours, blobGets, 1), atMost(ours, bytesFrom, exact)}

// faster4 are the goals of a download over four connections, beside the upstream itself and
// beside one connection.
var faster4 = []goal{
	asFast(ours, 3.5, direct), ratio(ours, cpu, 1.15, plainly), ratio(ours, peak, 1.1, plainly), atMost(ours, bytesFrom, exact),
}

func with(contenders []string, others ...string) []string { return append(contenders, others...) }

func rate(perSecond int64) func(*bench) pullthroughtest.Fault {
	return func(*bench) pullthroughtest.Fault {
		return pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 20*", Rate: perSecond}
	}
}

func cut(b *bench) pullthroughtest.Fault {
	return pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 20*", CutAfter: new(b.bytes(64 * mib))}
}

func silence(b *bench) pullthroughtest.Fault {
	if b.tiny { // it takes two seconds
		return pullthroughtest.Fault{Match: "* /v2/*/manifests/*"}
	}
	return pullthroughtest.Fault{Match: "* /v2/*/manifests/*", Stall: make(chan struct{})}
}
