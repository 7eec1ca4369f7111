package fakeecr

import (
	"fmt"
	"net/http"
	"os"
)

// HealthPath is where a Server says whether it can serve: 200 if it can, 503 with the reason
// if its directory is not there any more. It says so to everybody, without a login. It
// does not say whether upstreams answer.
const HealthPath = "/health"

func (s *Server) serveHealth(w http.ResponseWriter) {
	if s.config.Data != "" {
		if _, err := os.Stat(s.config.Data); err != nil {
			s.config.Logger.Warn("this fakeecr is not healthy", "err", err)
			http.Error(w, "fakeecr: the directory cannot be read", http.StatusServiceUnavailable)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}
