package diststore_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/layouttest"
)

// TestADirectoryOfTheFirstFormatIsServed: dirstore wrote it before there was a
// note of the format. What is added changes no file that was there.
func TestADirectoryOfTheFirstFormatIsServed(t *testing.T) {
	dir := scratch(t)
	old := layouttest.Unpack(t, "../dirstore/testdata/format1.txt", dir)
	s := diststore.New(onDisk(dir))
	layouttest.AssertServed(t, s)
	layouttest.AssertUnchanged(t, dir, old)
	layouttest.Add(t, s)
	layouttest.AssertUnchanged(t, dir, old)
	layouttest.AssertServed(t, diststore.New(onDisk(dir)))
}
