//go:build unix

package dirstore_test

import (
	"os"
	"path"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

// crashPoints are the moments between any two steps that change the directory, or
// hold a lock: the process ends before the step is taken. TestCrashAtEachPoint says
// whether they are all.
var crashPoints = []string{
	"lock gate", "lock lock", "lock own staging", "lock sweep",
	"mkdir content dir", "mkdir layers dir", "mkdir manifests dir", "mkdir own content dir", "mkdir own manifests dir",
	"mkdir own referrers dir", "mkdir own repository dir", "mkdir own staging", "mkdir planted", "mkdir pullthrough",
	"mkdir repository dir", "mkdir root", "mkdir staged", "mkdir staging", "mkdir tag dir",
	"create planted", "create staged",
	"write planted", "write staged",
	"sync planted", "sync staged",
	"close planted", "close staged",
	"rename content dir", "rename layer", "rename layer link", "rename layer size", "rename own content dir",
	"rename own referrers", "rename own revision", "rename revision", "rename revision link", "rename revision sidecar",
	"rename tag", "rename tag history", "rename tag link", "rename tag sidecar",
	"touch content",
	"syncdir content dir", "syncdir layers dir", "syncdir manifests dir", "syncdir own content dir",
	"syncdir own manifests dir", "syncdir own repository dir", "syncdir planted", "syncdir pullthrough",
	"syncdir repository dir", "syncdir revision", "syncdir root", "syncdir staged", "syncdir tag dir",
	"count size",
	"link format",
	"aside content", "aside layer", "aside layer link", "aside own revision", "aside revision", "aside tag",
	"remove content", "remove content dir", "remove own content", "remove own content dir", "remove own referrers",
	"remove own staging", "aside revision link", "remove staged", "remove tag sidecar",
}

// rarePoints are those to which a process comes only when somebody else stores the very same
// thing at that moment.
var rarePoints = []string{
	"mkdir layer", "mkdir revision", "mkdir own revision", "mkdir tag", "rename content", "rename own content",
	"rename own revision link", "rename own revision sidecar", "syncdir layer", "syncdir own revision", "syncdir tag",
}

// places are the kinds of names in the directory.
var places = func() (all []struct {
	name string
	re   *regexp.Regexp
}) {
	const hash, file = `(sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})`, `sha(256|512)-[0-9a-f]+\.json`
	for _, p := range [][2]string{
		{"content", `/blobs/sha(256|512)/[0-9a-f]{2}/[0-9a-f]+/data`},
		{"content dir", `/blobs(/sha(256|512)(/[0-9a-f]{2}(/[0-9a-f]+)?)?)?`},
		{"layer link", `/_layers/` + hash + `/link`},
		{"layer size", `/_layers/` + hash + `/size`},
		{"layer", `/_layers/` + hash},
		{"layers dir", `/_layers(/sha(256|512))?`},
		{"revision link", `/_manifests/revisions/` + hash + `/link`},
		{"revision sidecar", `/_manifests/revisions/` + hash + `/` + file},
		{"revision", `/_manifests/revisions/` + hash},
		{"manifests dir", `/_manifests(/revisions(/sha(256|512))?)?`},
		{"tag link", `/_manifests/tags/[^/]+/current/link`},
		{"tag sidecar", `/_manifests/tags/[^/]+/current/` + file},
		{"tag history", `/_manifests/tags/[^/]+/index/` + hash + `/link`},
		{"tag", `/_manifests/tags/[^/]+`},
		{"tag dir", `/_manifests/tags(/[^/]+/.*)?`},
		{"referrers", `/_referrers/` + hash + `\.json`},
		{"referrers dir", `/_referrers(/sha(256|512))?`},
		{"repository dir", `/repositories(/[^_].*)?`},
	} {
		all = append(all, struct {
			name string
			re   *regexp.Regexp
		}{p[0], regexp.MustCompile(p[1] + `$`)})
	}
	return all
}()

// crashPoint names a step on the disk; "" for one that changes nothing.
func crashPoint(op, name string) string {
	if op == "open" || op == "stat" {
		return ""
	}
	if _, staged, ok := strings.Cut(name, "pullthrough/staging"); ok {
		return op + []string{" staging", " own staging", " staged", " planted"}[min(strings.Count(staged, "/"), 3)]
	}
	if own, ok := strings.CutPrefix(name, "pullthrough"); ok {
		if own == "/lock" || own == "/gate" || own == "/sweep" || own == "/size" || own == "/format" || own == "" {
			return op + " " + path.Base(name)
		}
		op += " own"
	}
	if name == "." || strings.HasPrefix("docker/registry/v2", name) {
		return op + " root"
	}
	for _, p := range places {
		if p.re.MatchString("/" + name) {
			return op + " " + p.name
		}
	}
	return op + " " + name
}

// fuse kills the process at the n-th time that it comes to the point, and counts
// how often it came to each.
type fuse struct {
	point string
	n     int

	mu   sync.Mutex
	seen map[string]int
}

func (f *fuse) probe(op, name string) error {
	point := crashPoint(op, name)
	if point == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = make(map[string]int)
	}
	if f.seen[point]++; point == f.point && f.seen[point] == f.n {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing more happens
	}
	return nil
}
