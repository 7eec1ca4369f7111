package pullthroughtest

import (
	"crypto/tls"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/selfsigned"
)

// newCertificate makes a certificate of the registry's own. The clock of a synctest bubble
// starts in 2000.
func newCertificate() (tls.Certificate, error) {
	return selfsigned.New([]string{"registry.test", "localhost", "*.registry.test", "127.0.0.1"},
		time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().AddDate(10, 0, 0))
}
