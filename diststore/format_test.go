package diststore_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/layouttest"
)

// TestADirectoryOfTheFirstFormatIsServed: dirstore wrote it before there was a
// note of the format. What is added changes no file that was there.
func TestADirectoryOfTheFirstFormatIsServed(t *testing.T) {
	dir := scratch(t)
	old := layouttest.Unpack(t, "../dirstore/testdata/format1.txt", dir)
	s := diststore.New(onDisk(dir))
	require.NoError(t, s.CheckFormat(t.Context()))
	layouttest.AssertServed(t, s)
	layouttest.AssertUnchanged(t, dir, old)
	layouttest.Add(t, s)
	layouttest.AssertUnchanged(t, dir, old)
	layouttest.AssertServed(t, diststore.New(onDisk(dir)))
}

// TestTheFormatIsNotedOnce: it takes one request, and one more the first time.
func TestTheFormatIsNotedOnce(t *testing.T) {
	p := &probe{StorageDriver: drivers["inmemory"](t), name: "s3aws"}
	require.NoError(t, diststore.New(p).CheckFormat(t.Context()))
	assert.Equal(t, []string{"get", "put"}, p.asked())
	require.NoError(t, diststore.New(p).CheckFormat(t.Context()))
	assert.Equal(t, []string{"get"}, p.asked())
	content, err := p.StorageDriver.GetContent(t.Context(), "/"+layout.Format)
	require.NoError(t, err)
	assert.Equal(t, layout.FormatNote, string(content))
}

// TestAnotherFormatIsRefused, with what the note says.
func TestAnotherFormatIsRefused(t *testing.T) {
	for content, said := range map[string]string{"2\n": "2", "12.1\nas of 2031": "12.1", "": "", "<html>": "<html>"} {
		p := &probe{StorageDriver: drivers["inmemory"](t)}
		write(t, p.StorageDriver, layout.Format, content)
		err := diststore.New(p).CheckFormat(t.Context())
		var other *diststore.FormatError
		if assert.ErrorAs(t, err, &other, content) {
			assert.Equal(t, said, other.Format)
			assert.ErrorContains(t, err, `pullthrough/format is "`+said+`"`)
		}
		assert.NotContains(t, p.asked(), "put")
	}
}

// TestABucketThatCannotBeWrittenHasAFormat, and one that cannot be read has none.
func TestABucketThatCannotBeWrittenHasAFormat(t *testing.T) {
	broken := "put"
	p := &probe{StorageDriver: drivers["inmemory"](t)}
	p.fail = func(op, _ string) error {
		if op == broken {
			return errDriver
		}
		return nil
	}
	assert.NoError(t, diststore.New(p).CheckFormat(t.Context()))
	broken = "get"
	assert.ErrorIs(t, diststore.New(p).CheckFormat(t.Context()), errDriver)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, diststore.New(p).CheckFormat(ctx), context.Canceled)
}
