// Command upstream is the registry that the AWS clients' day pulls from. It has the image
// library/app:v1 for the user robot with the password "right", who gets tokens.
//
// GET /requests answers the requests for manifests and blobs that were answered with 200,
// sorted, one on each line; DELETE /requests forgets them. POST /move points the tag at
// another image. When the registry is ready, it prints "listening on http://HOST:PORT".
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func main() {
	var up atomic.Pointer[pullthroughtest.Upstream]
	var seed atomic.Int64
	push := func() {
		up.Load().Push("library/app", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed.Add(1)}))
	}
	started, err := pullthroughtest.Start(pullthroughtest.Config{
		Auth:  pullthroughtest.Bearer,
		Users: map[string]string{"robot": "right"},
		Handler: func(w http.ResponseWriter, r *http.Request) bool {
			switch r.Method + " " + r.URL.Path {
			case "GET /requests":
				fmt.Fprint(w, requests(up.Load()))
			case "DELETE /requests":
				up.Load().Reset()
			case "POST /move":
				push()
			default:
				return false
			}
			return true
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	up.Store(started)
	push()
	fmt.Println("listening on " + started.URL)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	started.Close()
}

func requests(up *pullthroughtest.Upstream) string {
	lines := slices.DeleteFunc(up.Log(), func(line string) bool {
		ofImage := strings.Contains(line, "/manifests/") || strings.Contains(line, "/blobs/")
		return !ofImage || !strings.HasSuffix(line, " 200")
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
