package diststore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
)

// fault is the driver's error as ours: only what it says is not there is a miss.
func fault(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[storagedriver.PathNotFoundError](err); ok {
		return fmt.Errorf("%s %s: %w", op, name, fs.ErrNotExist)
	}
	return &driverError{text: redact(op + " " + name + ": " + err.Error()), causes: []error{root(err), ctx.Err()}}
}

// driverError is a failure of the driver. It has no Unwrap, so that nobody prints
// what was left out of the text.
type driverError struct {
	text   string
	causes []error
}

func (e *driverError) Error() string { return e.text }

// Is finds the cause. A file that is missing somewhere below the driver is no
// miss: it might as well be its configuration.
func (e *driverError) Is(target error) bool {
	if target == fs.ErrNotExist {
		return false
	}
	for _, cause := range e.causes {
		if errors.Is(cause, target) {
			return true
		}
	}
	return false
}

// root is what errors that hide their cause from errors.Is are about: those of
// the drivers' base, and of Amazon's SDK.
func root(err error) error {
	for {
		var next error
		switch e := err.(type) {
		case storagedriver.Error:
			next = e.Detail
		case interface{ OrigErr() error }:
			next = e.OrigErr()
		}
		if next == nil {
			return err
		}
		err = next
	}
}

// maxErrorText is how much of a driver's error is told, in bytes.
const maxErrorText = 600

// What the drivers' SDKs put into their errors: the URLs of requests, and what
// the other side has answered.
var secrets = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?i)\b((?:proxy-)?authorization|cookie)["']?\s*[:=].*`), "$1: ..."},
	{regexp.MustCompile(`(?i)\b(bearer|basic|sharedkey|aws4-hmac-sha256)\s+\S+`), "$1 ..."},
	{regexp.MustCompile(`(?i)([a-z][a-z0-9+.-]*://)[^\s/@"'<>]*@`), "$1"},
	{regexp.MustCompile(`\?[^\s"'<>]+`), "?..."},
	{regexp.MustCompile(`(?i)(<[a-z]*(?:key|token|sign|secret|password)[a-z]*>)[^<]*`), "$1..."},
	{regexp.MustCompile(`(?i)([a-z_-]*(?:accesskey|accountkey|apikey|api_key|keyid|secret|signature|credential|password|passwd|token|assertion|private_key)(?:[_-]?(?:access|key|id|value))*|\bsig)["']?\s*[:=]\s*(?:"[^"]*"?|'[^']*'?|[^\s,;&<>"'{\[]+)`), "$1=..."},
	{regexp.MustCompile(`\b(AKIA|ASIA|AROA|AIDA)[A-Z0-9]{8,}\b`), "$1..."},
}

// redact is text without what may be a credential, on one line, and not too long.
func redact(text string) string {
	for _, s := range secrets {
		text = s.pattern.ReplaceAllString(text, s.with)
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "..."
	}
	return text
}
