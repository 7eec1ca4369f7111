// Command fakeecr serves the small fake Amazon ECR of package fakeecr on a port: a private
// registry, kept in memory or in a directory. Its pull through cache rules are given on
// the command line.
//
//	go run ./cmd/fakeecr -rule docker-hub=registry-1.docker.io
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
// clients in. On SIGTERM or SIGINT it finishes what is under way, for at most 10 s, and
// exits with 0. If the command line cannot be used, it exits with 2.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal kills the process: its sender does not want to wait.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program: it serves until ctx ends and returns the exit
// status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		printUsage(stdout)
		return exitOK
	}
	if err == nil {
		err = serve(ctx, c, stdout, newConsole(stderr, c.progress, c.jsonLog))
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "fakeecr: %v\n", err)
	if _, ok := errors.AsType[*flagError](err); ok {
		return exitUsage
	}
	return exitFailure
}
