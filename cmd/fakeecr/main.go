// Command fakeecr serves the small fake Amazon ECR of package fakeecr on a port: a private
// registry, kept in memory or in a directory. Its pull through cache rules are given on
// the command line.
//
//	go install github.com/ecr-pullthrough/pullthrough/cmd/fakeecr@latest
//	fakeecr -rule docker-hub=registry-1.docker.io
//	docker pull localhost:5000/docker-hub/library/alpine:latest
//
// ECR's API creates further rules, creation templates and exclusions. It also describes
// repositories and images:
//
//	aws --endpoint-url http://localhost:5000 ecr create-pull-through-cache-rule \
//		--ecr-repository-prefix quay --upstream-registry-url quay.io
//	aws --endpoint-url http://localhost:5000 ecr describe-repositories
//
// Clients need no credentials. There is no Secrets Manager: the flag -secret gives the
// secrets that rules name.
//
// When it is ready, it prints one line, "listening on http://HOST:PORT", to standard
// output. Standard error gets a line for each pull and, on a terminal, a bar for each
// running download. http://HOST:PORT/debug/pullthrough shows the same to a browser on
// this machine, and /debug/pullthrough/metrics to Prometheus; -debug-page lets other
// clients in. /health is 200 while it can serve, and fakeecr -health asks that.
//
// Flags may be given in the environment, too, and in a file: see docs/fakeecr.md. On SIGHUP
// it reads its files again; if they cannot be used, it says so and goes on with what it has.
//
// On SIGTERM or SIGINT it finishes what is under way, for at most 8 s, and exits with 0. A
// second signal ends it at once, with 1. It exits with 2 if the flags cannot be used, and
// with 1 if something else fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
)

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	os.Exit(program{os.Args[1:], os.Environ(), os.Stdout, os.Stderr, signal.Notify}.run())
}

// program is what the process gives to run.
type program struct {
	args, env      []string
	stdout, stderr io.Writer
	notify         func(c chan<- os.Signal, sig ...os.Signal) // signal.Notify
}

// run is the whole program: it serves until a signal ends it and returns the exit status.
func (p program) run() int {
	c, err := parse(p.args, p.env)
	switch {
	case errors.Is(err, flag.ErrHelp):
		printUsage(p.stdout)
		return exitOK
	case err != nil:
	case c.version:
		printVersion(p.stdout)
	case c.health:
		err = checkHealth(context.Background(), c, p.stdout)
	default:
		err = p.serve(c)
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(p.stderr, "fakeecr: %v\n", err)
	if _, ok := errors.AsType[*flagError](err); ok {
		return exitUsage
	}
	return exitFailure
}
