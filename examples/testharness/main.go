// Command testharness records container images in a directory. Tests are then served from
// that directory without a network.
//
//	go run ./examples/testharness -fill testdata/images docker-hub/library/alpine:3.20
//
// Name an image as it is pulled through a rule: the rule's prefix, then the upstream
// repository. You can commit the directory or keep it in the cache of your CI. Images
// that it has are not fetched again. offline_test.go has the other half to copy: a
// registry for tests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// wellKnown are the rules used without -rule: upstreams that need no credential.
var wellKnown = pullthrough.StaticRules{
	{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"},
	{Prefix: "ecr-public", UpstreamURL: "public.ecr.aws"},
	{Prefix: "ghcr", UpstreamURL: "ghcr.io"},
	{Prefix: "kubernetes", UpstreamURL: "registry.k8s.io"},
	{Prefix: "quay", UpstreamURL: "quay.io"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the program and returns its exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := &recorder{rules: wellKnown, out: stdout}
	images, err := f.parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "testharness:", err)
		return 2
	}
	if err := f.fill(ctx, images); err != nil {
		fmt.Fprintln(stderr, "testharness:", err)
		return 1
	}
	return 0
}

// recorder records images in a directory.
type recorder struct {
	dir       string
	rules     pullthrough.StaticRules
	platforms []ocispec.Platform

	mu  sync.Mutex
	out io.Writer
}

func (f *recorder) parse(args []string, stderr io.Writer) (images []pullthrough.Request, err error) {
	fs := flag.NewFlagSet("testharness", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: testharness -fill DIR [flags] IMAGE…")
		fs.PrintDefaults()
	}
	fs.StringVar(&f.dir, "fill", "", "`DIR` to record the images in")
	var rules pullthrough.StaticRules
	fs.Func("rule", "`PREFIX=UPSTREAM`, a pull through cache rule in place of the usual ones; repeatable", func(value string) error {
		prefix, upstream, _ := strings.Cut(value, "=")
		rules = append(rules, pullthrough.Rule{Prefix: prefix, UpstreamURL: upstream})
		return rules[len(rules)-1].Check()
	})
	fs.Func("platform", "`OS/ARCH`, a platform to record; repeatable; without it all are recorded", func(value string) error {
		p := strings.Split(value, "/")
		if len(p) < 2 || len(p) > 3 || slices.Contains(p, "") {
			return errors.New("want OS/ARCH or OS/ARCH/VARIANT")
		}
		f.platforms = append(f.platforms, ocispec.Platform{OS: p[0], Architecture: p[1], Variant: strings.Join(p[2:], "")})
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if f.dir == "" || fs.NArg() == 0 {
		return nil, errors.New("want -fill DIR and at least one IMAGE, see -help")
	}
	if rules != nil {
		f.rules = rules
	}
	for _, image := range fs.Args() {
		r := parseImage(image)
		if _, _, ok := pullthrough.Match(f.rules, r.Repo.Name); !ok {
			return nil, fmt.Errorf("%s: no rule covers it; the prefixes are%s", image, f.prefixes())
		}
		images = append(images, r)
	}
	return images, nil
}

func (f *recorder) prefixes() (all string) {
	for _, r := range f.rules {
		all += " " + r.Prefix
	}
	return all
}

// parseImage parses NAME, NAME:TAG or NAME@DIGEST.
func parseImage(image string) pullthrough.Request {
	name, ref, ok := strings.Cut(image, "@")
	if !ok {
		name, ref = image, "latest"
		if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
			name, ref = image[:i], image[i+1:]
		}
	}
	return pullthrough.Request{Repo: pullthrough.Repo{Name: name}, Ref: ref}
}

// fill imports the images one after the other.
func (f *recorder) fill(ctx context.Context, images []pullthrough.Request) (err error) {
	store, err := dirstore.Open(f.dir)
	if err != nil {
		return err
	}
	var requests atomic.Int64
	proxy := &pullthrough.Proxy{
		Store: store,
		Rules: f.rules,
		OnEvent: func(_ context.Context, e pullthrough.Event) {
			requests.Add(int64(e.Upstream))
		},
	}
	defer func() {
		err = errors.Join(err, proxy.Shutdown(context.WithoutCancel(ctx)), store.Close())
	}()
	for _, r := range images {
		f.print("%s %s", r.Repo.Name, r.Ref)
		m, err := proxy.Import(ctx, r, pullthrough.ImportOptions{Platforms: f.platforms, Progress: f.progress})
		if err != nil {
			return err
		}
		f.print("  is %s, %d requests upstream so far", m.Descriptor.Digest, requests.Load())
	}
	return nil
}

// progress prints a line for each object that has been stored in the directory.
func (f *recorder) progress(d ocispec.Descriptor, _ int64, stored bool, _ error) {
	if stored {
		f.print("  %.19s %9d bytes", d.Digest, d.Size)
	}
}

func (f *recorder) print(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(f.out, format+"\n", args...)
}
