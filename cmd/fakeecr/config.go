package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// config is what the command line says.
type config struct {
	fakeecr.Config
	listen         string
	progress       string // auto, always or never: whether downloads are shown
	jsonLog, debug bool
	noPulls        bool              // no lines for pulls
	version        bool              // print it, and serve nothing
	health         bool              // ask the fakeecr at listen, and serve nothing
	tls            keyPair           // the zero keyPair: http
	rereads        bool              // there are files that SIGHUP has read again
	settled        map[string]string // the values of flags that SIGHUP does not change
	claimed        claims            // who has said what of upstreams
	warnings       []string          // about flags that are probably mistakes
}

// arguments are the values of the flags as they were given. Package flag must not check
// them: it quotes a value that it refuses, and a value may hold a password.
type arguments struct {
	listen, account, region, tagTTL, fill, log       string
	maxBytes, debugPage, progress, tags, connections string
	offline, debug, verifyBlobs, blobsFirst          bool
	referrersTag, anyUpstream, requireLogin          bool
	mirror, library                                  bool
	rules, credentials, realms, endpoints, secrets   []setting
	data                                             *string // nil: memory
	serving
	sources
}

func (a *arguments) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("fakeecr", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run writes the error
	fs.StringVar(&a.listen, "listen", "127.0.0.1:5000", "`HOST:PORT` to listen on; port 0 picks a free one")
	fs.StringVar(&a.account, "account", "123456789012", "`ID` of the AWS account")
	fs.StringVar(&a.region, "region", "us-east-1", "the AWS `REGION`")
	fs.StringVar(&a.tagTTL, "tag-ttl", "24h", "`DURATION` for which a tag counts as fresh;\n0: asked for on every pull, negative: never again")
	fs.StringVar(&a.fill, "fill", "lazy", "`MODE`: how much of an image a pull brings in: lazy (what clients ask for),\nbackground (all of it, as Amazon ECR does) or eager (all of it, parts first)")
	fs.StringVar(&a.tags, "tags", "stored", "`WHICH` tags a list of tags has: stored (as Amazon ECR's), or upstream (those of upstream, too)")
	fs.BoolVar(&a.referrersTag, "referrers-tag", false, "list what refers to an image by the tag sha256-<hex> where an upstream has no referrers API")
	fs.BoolVar(&a.anyUpstream, "any-upstream", false, "let the API make rules for any upstream, such as http://127.0.0.1:5001; Amazon ECR takes\nthose that it knows")
	fs.BoolVar(&a.requireLogin, "require-login", false, "answer 401 until docker login, with a password of GetAuthorizationToken; it can be used for 12 hours")
	fs.BoolVar(&a.mirror, "mirror", false, "be a mirror of the upstreams of all rules: a client that asks for library/alpine with ns=docker.io, as\ncontainerd does, gets PREFIX/library/alpine")
	fs.BoolVar(&a.library, "library", false, "find Docker Hub's official images without library/, as docker-hub/alpine; Amazon ECR does not")
	fs.BoolVar(&a.blobsFirst, "blobs-first", true, "pull blobs of repositories that no image has made yet; -blobs-first=false: as in Amazon ECR,\nthere is no such repository")
	fs.StringVar(&a.connections, "connections", "1", "`N` connections to upstream for one large blob, 16 at most, where upstream limits the rate of each")
	fs.BoolVar(&a.offline, "offline", false, "ask no upstream: what is stored is served, whatever its age")
	fs.StringVar(&a.maxBytes, "max-bytes", "0", "`SIZE` of all images that are kept, such as 10GiB, 512MiB or a number of bytes: when there\nis more, those pulled least recently go; 0: all are kept")
	fs.BoolVar(&a.verifyBlobs, "verify-blobs", false, "read each blob in -data in full, once, when it is first asked for; one that is damaged is fetched again")
	fs.StringVar(&a.log, "log", "text", "`FORMAT` of the log on standard error: text (one line for each pull), json, or off (no lines for\npulls; warnings are still written)")
	fs.StringVar(&a.progress, "progress", "auto", "`WHEN` running downloads are shown on standard error, below the log: auto (on a terminal,\nunless the log is json), always or never")
	fs.StringVar(&a.debugPage, "debug-page", "local", "`WHO` may see "+fakeecr.PagePath+", and its /metrics: local (clients on this machine that\nsay localhost or an IP address), all or off")
	fs.BoolVar(&a.debug, "debug", false, "log more: the events that Amazon ECR would send to EventBridge, among others")
	fs.Func("data", "`DIR` to keep images in, and what the API has created; without it they are kept in memory", func(value string) error {
		a.data = &value
		return nil
	})
	a.upstreamFlags(fs)
	a.serving.flags(fs, a.list)
	a.sources.flags(fs)
	return fs
}

// upstreamFlags are those that say something of upstreams, which may be repeated.
func (a *arguments) upstreamFlags(fs *flag.FlagSet) {
	list := func(to *[]setting, name, usage string) { a.list(fs, to, name, usage) }
	list(&a.rules, "rule", "`PREFIX=UPSTREAM`, a pull through cache rule; repeatable. UPSTREAM is a host or an http\n"+
		"or https URL; a path behind the host is the upstream repository prefix. It stands before a\n"+
		"rule with the same prefix that is kept in -data; the API can change it for this run")
	list(&a.credentials, "credential", "`PREFIX=USER:TOKEN`, what the rule's upstream is told; repeatable")
	list(&a.realms, "realm", "`PREFIX=HOST`, a token server that may have the rule's credential; repeatable")
	list(&a.endpoints, "endpoint", "`HOST=URL`, where an upstream host really is, whoever made the rule; repeatable. HOST * is every\n"+
		"host that has no other and that a rule names without http:// or https://")
	list(&a.secrets, "secret", "`NAME=USER:TOKEN`, a secret for the rules of the API, whose credentialArn ends in NAME:\n"+
		"ecr-pullthroughcache/docker-hub; repeatable")
	list(&a.credentialFiles, "credential-file", "`FILE` with a -credential in each line, which may also be empty or begin with #; repeatable")
	list(&a.secretFiles, "secret-file", "`FILE` with a -secret in each line, in the same way; repeatable")
}

func printUsage(w io.Writer) {
	fs := new(arguments).flags()
	fs.SetOutput(w)
	fmt.Fprintln(w, "usage: fakeecr [flags]")
	fs.PrintDefaults()
	fmt.Fprint(w, usageOfSources)
}

// parse reads the command line, then the environment, then the file that they name. The
// error is flag.ErrHelp or a *flagError.
func parse(args, env []string) (*config, error) {
	var a arguments
	fs := a.flags()
	if err := parseFlags(fs, args); err != nil {
		return nil, err
	}
	if err := a.readRest(fs, env); err != nil {
		return nil, err
	}
	c, err := a.config()
	if err != nil {
		return nil, a.locate(err)
	}
	c.settled, c.rereads = a.settledValues(fs), a.rereads()
	c.warnings = append(c.warnings, a.warnings...)
	return c, nil
}

// parseFlags reads the command line. Its errors show no value.
func parseFlags(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		// What follows a = may be a secret: "---credential=quay=me:secret".
		known, _, _ := strings.Cut(quoted.ReplaceAllString(err.Error(), "*****"), "=")
		return &flagError{why: known}
	}
	if fs.NArg() > 0 {
		// It is not shown: it may be the rest of a password with a blank in it.
		return &flagError{why: fmt.Sprintf("argument %d is not a flag, see -help", len(args)-fs.NArg()+1)}
	}
	return nil
}

// config checks each value.
func (a *arguments) config() (*config, error) {
	c := &config{listen: a.listen, debug: a.debug, jsonLog: a.log == "json", noPulls: a.log == "off"}
	c.Account, c.Region = a.account, a.region
	c.Policy.Offline, c.Policy.BlobsFirst, c.VerifyBlobs = a.offline, a.blobsFirst, a.verifyBlobs
	c.Policy.UpstreamTags, c.Policy.ReferrersTag = a.tags == "upstream", a.referrersTag
	c.AnyUpstream, c.RequireLogin = a.anyUpstream, a.requireLogin
	c.Mirror, c.Policy.Library = a.mirror, a.library
	if a.data != nil && *a.data == "" {
		return nil, badFlag("-data", "", "want a directory")
	} else if a.data != nil {
		c.Data = *a.data
	}
	if err := checkListen(a.listen); err != nil {
		return nil, err
	}
	if !accountID.MatchString(a.account) {
		return nil, badFlag("-account", a.account, "an account has 12 digits")
	}
	if !regionName.MatchString(a.region) {
		return nil, badFlag("-region", a.region, "a Region is spelled like us-east-1")
	}
	if err := a.checkWords(); err != nil {
		return nil, err
	}
	c.Fill, c.DebugPage, c.progress = fillModes[a.fill], fakeecr.PageAccess(a.debugPage), a.progress
	var ok bool
	if c.MaxBytes, ok = parseBytes(a.maxBytes); !ok {
		return nil, badFlag("-max-bytes", a.maxBytes, "want a size like 10GiB, 512MiB or 1000000, 0 for no limit")
	}
	var err error
	if c.Policy.Connections, err = strconv.Atoi(a.connections); err != nil || c.Policy.Connections < 1 || c.Policy.Connections > 16 {
		return nil, badFlag("-connections", a.connections, "want a number from 1 to 16")
	}
	if c.Policy.TagTTL, err = parseTTL(a.tagTTL); err != nil {
		return nil, err
	}
	if err := a.serving.config(c); err != nil {
		return nil, err
	}
	return c, c.addUpstreams(a)
}

// checkWords checks the flags that are one of some words.
func (a *arguments) checkWords() error {
	for _, f := range []struct {
		name, value string
		words       []string
	}{
		{"-log", a.log, []string{"text", "json", "off"}},
		{"-fill", a.fill, []string{"lazy", "background", "eager"}},
		{"-debug-page", a.debugPage, []string{"local", "all", "off"}},
		{"-tags", a.tags, []string{"stored", "upstream"}},
		{"-progress", a.progress, []string{"auto", "always", "never"}},
	} {
		if last := len(f.words) - 1; !slices.Contains(f.words, f.value) {
			return badFlag(f.name, f.value, "it is "+strings.Join(f.words[:last], ", ")+" or "+f.words[last])
		}
	}
	return nil
}

var fillModes = map[string]pullthrough.FillMode{
	"lazy":       pullthrough.FillLazy,
	"background": pullthrough.FillBackground,
	"eager":      pullthrough.FillEager,
}

var (
	quoted     = regexp.MustCompile(`".*"`)
	accountID  = regexp.MustCompile(`^[0-9]{12}$`)
	regionName = regexp.MustCompile(`^[a-z]+(-[a-z0-9]+)+$`)
)

func checkListen(value string) error {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return badFlag("-listen", value, "want HOST:PORT")
	}
	return nil
}

// parseTTL turns the duration of the flag into that of a Policy, where 0 stands for ECR's
// 24 hours. 0 and negative numbers need no unit.
func parseTTL(value string) (time.Duration, error) {
	if n, err := strconv.Atoi(value); err == nil && n < 0 {
		return -1, nil
	}
	ttl, err := time.ParseDuration(value)
	switch {
	case err != nil:
		return 0, badFlag("-tag-ttl", value, "want a duration like 90s or 24h, 0 for every pull, -1 for never")
	case ttl == 0:
		return pullthrough.EveryPull, nil
	}
	return ttl, nil
}
