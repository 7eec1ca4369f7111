package fakeecr_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// It is told to everybody, and what is wrong is told to the log only.
func TestHealth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	i := start(t, fakeecr.Config{Data: dir, RequireLogin: true})
	assert.Equal(t, "ok\n", i.expect(t, fakeecr.HealthPath, 200))
	i.expect(t, fakeecr.HealthPath+"/more", 404)
	require.NoError(t, os.Rename(dir, dir+".away"))
	said := i.expect(t, fakeecr.HealthPath, 503)
	require.NoError(t, os.Rename(dir+".away", dir))
	assert.NotContains(t, said, dir)
	assert.Contains(t, i.log.String(), dir)
	assert.Equal(t, "ok\n", i.expect(t, fakeecr.HealthPath, 200))
}
