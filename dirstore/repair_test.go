package dirstore_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// TestARepairIsNotUndone: another process puts again what was found to be damaged, just
// before it is removed. From then on it is there at each moment.
func TestARepairIsNotUndone(t *testing.T) {
	small, large, img := noise(51, 100<<10), noise(52, 2<<20), manifestOf(image(51), "")
	d := img.Descriptor.Digest
	isBlob := func(content []byte) func(s *dirstore.Store) error {
		return func(s *dirstore.Store) error {
			b, err := s.Blob(t.Context(), repo, digest.FromBytes(content))
			if err == nil {
				err = b.Body.Close()
			}
			return err
		}
	}
	isImage := func(s *dirstore.Store) error {
		_, err := s.Manifest(t.Context(), repo, string(d))
		return err
	}
	for name, c := range map[string]struct {
		damaged func(dir string) string // the file
		opened  int32                   // how often it is opened before it is removed
		there   func(s *dirstore.Store) error
	}{
		"a small blob":      {func(dir string) string { return dataFile(dir, digest.FromBytes(small)) }, 2, isBlob(small)},
		"a large blob":      {func(dir string) string { return dataFile(dir, digest.FromBytes(large)) }, 2, isBlob(large)},
		"a blob's link":     {func(dir string) string { return layerLink(dir, repo.Name, digest.FromBytes(small)) }, 1, isBlob(small)},
		"a manifest":        {func(dir string) string { return dataFile(dir, d) }, 1, isImage},
		"a manifest's link": {func(dir string) string { return revisionLink(dir, repo.Name, d) }, 1, isImage},
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			putAll := func() {
				s := open(t, dir)
				putBlob(t, s, repo, small)
				putBlob(t, s, repo, large)
				put(t, s, repo, img)
			}
			putAll()
			file := c.damaged(dir)
			write(t, "damaged", file)
			s := open(t, dir)
			var opened atomic.Int32
			repaired := false
			s.SetProbe(func(op, name string) error {
				switch {
				case op == "open" && strings.HasSuffix(file, name) && opened.Add(1) <= c.opened:
				case opened.Load() < c.opened || op == "link":
				case !repaired && (op == "stat" || op == "aside" || op == "open"):
					repaired = true
					putAll()
				case repaired:
					assert.NoError(t, c.there(open(t, dir)))
				}
				return nil
			})
			_ = c.there(s)
			s.WaitForReads()
			s.SetProbe(nil)
			require.True(t, repaired)
			assert.NoError(t, c.there(s))
			assert.NoError(t, c.there(open(t, dir)))
		})
	}
}
