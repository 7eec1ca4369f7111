package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// prefix is the prefix of the only rule.
const prefix = "hub"

// The contenders: who does the work of a scenario. The others are in plains.
const (
	ours         = "fakeecr"        // with -data
	inMemory     = "fakeecr memory" // without
	plainly      = "fakeecr plain"  // with -data, and without the flags of the scenario
	direct       = "direct"         // the upstream itself
	distribution = "distribution"   // registry, version 3, as a pull through cache
	nginx        = "nginx"          // as a caching reverse proxy
	reverseProxy = "reverseproxy"   // httputil.ReverseProxy
)

// alternatives are the contenders that run only if they are asked for.
var alternatives = []string{distribution, nginx, reverseProxy}

// contender is a server, or the upstream itself.
type contender struct {
	name     string
	*process        // nil: the upstream itself
	base     string // URL below which it has the upstream's repositories
	token    bool   // it wants a token of the upstream
}

// stage is the upstream of a scenario, and what its servers are started with.
type stage struct {
	*bench
	up    *pullthroughtest.Upstream
	flags []string     // of fakeecr
	env   []string     // makes the servers trust the upstream's certificate
	delay atomic.Int64 // of each answer of up, a time.Duration
	size  int64        // bytes that a round gets from the upstream if nothing is stored
}

func (b *bench) newStage(s scenario) (*stage, error) {
	g := &stage{bench: b, flags: s.flags}
	up, err := pullthroughtest.Start(pullthroughtest.Config{
		Auth: pullthroughtest.Bearer, Handler: g.delayAnswer, TLS: s.tls || s.http2, HTTP2: s.http2,
	})
	if err != nil {
		return nil, err
	}
	g.up = up
	if up.Roots() == nil {
		return g, nil
	}
	file, err := writeCertificate(b.dir, up)
	g.env = []string{"SSL_CERT_FILE=" + file}
	return g, err
}

func writeCertificate(dir string, up *pullthroughtest.Upstream) (string, error) {
	conn, err := tls.Dial("tcp", up.Host(), &tls.Config{RootCAs: up.Roots()})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	f, err := os.CreateTemp(dir, "certificate-")
	if err != nil {
		return "", err
	}
	err = pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: conn.ConnectionState().PeerCertificates[0].Raw})
	return f.Name(), errors.Join(err, f.Close())
}

// delayAnswer delays an answer of the upstream. It does not answer itself.
func (g *stage) delayAnswer(_ http.ResponseWriter, r *http.Request) bool {
	if delay := time.Duration(g.delay.Load()); delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
	}
	return false
}

// start starts a contender. dir is empty, or what a contender of that name left.
func (g *stage) start(ctx context.Context, name, dir string) (c *contender, err error) {
	c = &contender{name: name}
	path := "/v2/"
	switch name {
	case direct:
		c.base, c.token = g.up.URL()+path, true
		return c, nil
	case handlerAlone:
		return c, nil
	case ours, inMemory, plainly:
		path += prefix + "/"
		args := []string{"-listen", "127.0.0.1:0", "-rule", prefix + "=" + g.up.URL()}
		if name != plainly {
			args = append(args, g.flags...)
		}
		if name != inMemory {
			args = append(args, "-data", dir)
		}
		c.process, err = start(ctx, g.env, g.fakeecr, args...)
	case distribution:
		c.process, err = g.startDistribution(ctx, dir)
	case nginx:
		c.token = true
		c.process, err = g.startNginx(ctx, dir)
	default:
		if c.token = name != "library"; !c.token {
			path += prefix + "/"
		}
		c.process, err = start(ctx, g.env, g.self, plainArg, name, g.up.URL(), dir)
	}
	if err != nil {
		return nil, err
	}
	c.base = c.url + path
	return c, nil
}

const distributionConfig = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q}
proxy: {remoteurl: %q}
`

func (g *stage) startDistribution(ctx context.Context, dir string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.yml")
	config := fmt.Sprintf(distributionConfig, filepath.Join(dir, "data"), address, g.up.URL())
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	return startAt(ctx, address, g.programs[distribution], "serve", file)
}

// nginxConfig is a cache in which clients of one object share a download. The user is
// ignored where nginx is not run by root.
const nginxConfig = `user root; worker_processes auto; daemon off; error_log stderr crit; pid %[1]s/pid;
events { worker_connections 4096; }
http {
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  proxy_cache_path %[1]s/cache levels=1:2 keys_zone=registry:10m inactive=7d use_temp_path=off;
  upstream registry { server %[3]s; keepalive 64; }
  server {
    listen %[2]s;
    location / {
      proxy_pass http://registry; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host %[3]s;
      proxy_cache registry; proxy_cache_valid 200 1d; proxy_ignore_headers Cache-Control Expires Vary;
      proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;
    }
  }
}
`

func (g *stage) startNginx(ctx context.Context, dir string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, nginxConfig, dir, address, g.up.Host()), 0o600); err != nil {
		return nil, err
	}
	return startAt(ctx, address, g.programs[nginx], "-e", "stderr", "-p", dir, "-c", file)
}

// findPrograms builds, or looks for, the programs of the alternatives. An alternative
// that this machine does not have is left out, and missing says why.
func (b *bench) findPrograms(ctx context.Context, root string, wanted []string) error {
	for _, name := range wanted {
		if !slices.Contains(alternatives, name) {
			return fmt.Errorf("there is no alternative %q; there are %s", name, strings.Join(alternatives, ", "))
		}
		program, err := "", error(nil)
		switch name {
		case distribution:
			program = filepath.Join(b.dir, "registry")
			err = build(ctx, filepath.Join(root, "internal", "conformance"), program, "github.com/distribution/distribution/v3/cmd/registry")
		case nginx:
			program, err = exec.LookPath("nginx")
		}
		if err != nil {
			b.missing[name] = err
			continue
		}
		b.programs[name] = program
	}
	return nil
}

func build(ctx context.Context, module, program, from string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, from)
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
