package verify_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

func file(t *testing.T, content []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, content, 0o644))
	f, err := os.Open(name)
	require.NoError(t, err)
	return f
}

// TestTheEndIsHeldBack until the content is known to be right.
func TestTheEndIsHeldBack(t *testing.T) {
	const size = 200_000
	want, wrong := content(size), errors.New("wrong")
	asked := 0
	answer := wrong
	b := verify.NewBody(file(t, want), size, func() error { asked++; return answer })
	got, err := io.ReadAll(b)
	assert.ErrorIs(t, err, wrong)
	assert.Equal(t, want[:size-verify.Held], got)
	_, err = b.Seek(-10, io.SeekEnd)
	require.NoError(t, err)
	_, err = b.Read(make([]byte, 10))
	assert.ErrorIs(t, err, wrong)
	assert.Equal(t, 2, asked)

	answer = nil
	at, err := b.Seek(0, io.SeekStart)
	require.NoError(t, err)
	assert.Zero(t, at)
	got, err = io.ReadAll(b)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got))
	assert.Equal(t, 3, asked, "nobody is asked again")
	require.NoError(t, b.Close())
	_, err = b.Read(make([]byte, 10))
	assert.ErrorIs(t, err, fs.ErrClosed)
}

// TestAFileThatChangesUnderABody: it never ends as if it were whole, and never goes past
// the size.
func TestAFileThatChangesUnderABody(t *testing.T) {
	want := content(100_000)
	right := func() error { return nil }
	longer := verify.NewBody(file(t, append(bytes.Clone(want), 1, 2, 3)), 100_000, right)
	got, err := io.ReadAll(longer)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got))
	shorter := verify.NewBody(file(t, want[:50_000]), 100_000, right)
	_, err = io.ReadAll(shorter)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NoError(t, errors.Join(longer.Close(), shorter.Close()))
}

// A body that embedded *os.File, or had its SyscallConn, would be sent past Read.
func TestABodyHidesItsFile(t *testing.T) {
	for _, name := range []string{"SyscallConn", "Fd", "WriteTo", "File"} {
		_, found := reflect.TypeFor[*verify.Body]().MethodByName(name)
		assert.False(t, found, name)
	}
}
