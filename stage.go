package pullthrough

import (
	"context"
	"errors"
	"os"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// stagePlace is a Stage as the place of a spool. It keeps a file of its own on
// the content: a Stage need not be readable once it is committed, and clients
// read on.
type stagePlace struct {
	stage Stage
	file  *os.File
}

var _ spool.Place = (*stagePlace)(nil)

// openStage asks the Store for a place; nil: it has none to lend.
func (p *Proxy) openStage(ctx context.Context, f *fill) *stagePlace {
	stager, ok := p.Store.(BlobStager)
	if !ok {
		return nil
	}
	opened := make(chan Stage, 1)
	err := p.bounded(ctx, "Store.StageBlob", func(ctx context.Context) error {
		stage, err := stager.StageBlob(ctx, f.rt.repo, f.digest)
		if err == nil && stage == nil {
			err = errors.New("no stage and no error")
		}
		if err == nil && ctx.Err() != nil {
			err = errors.Join(ctx.Err(), stage.Abort()) // nobody waits any more
		}
		opened <- stage
		return err
	})
	if err != nil {
		p.storeFailed(ctx, f.rt.repo, f.digest.String(), err)
		return nil
	}
	f.stage = guardedStage{<-opened}
	file, err := f.stage.Open()
	if err != nil {
		// Without it nobody could read on after the commit.
		f.abortStage()
		p.storeFailed(ctx, f.rt.repo, f.digest.String(), err)
		return nil
	}
	return &stagePlace{stage: f.stage, file: file}
}

func (s *stagePlace) WriteAt(p []byte, off int64) (int, error) { return s.stage.WriteAt(p, off) }

func (s *stagePlace) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// Open opens the content once more: by way of our own file, since the Stage may
// be gone, or by the Stage where the system cannot do that.
func (s *stagePlace) Open() (*os.File, error) {
	if f, err := spool.Reopen(s.file); err == nil {
		return f, nil
	}
	return s.stage.Open()
}

func (s *stagePlace) close() {
	if s != nil {
		_ = s.file.Close() // it was only read
	}
}

// abortStage forgets what was staged, if that is still to be done.
func (f *fill) abortStage() {
	if f.stage != nil {
		// What it says changes nothing: nothing of it is visible.
		_ = f.stage.Abort()
		f.stage = nil
	}
}

// guardedStage is a Stage whose panics are errors.
type guardedStage struct{ Stage }

func (s guardedStage) WriteAt(p []byte, off int64) (n int, err error) {
	err = guarded("Stage.WriteAt", func() (err error) { n, err = s.Stage.WriteAt(p, off); return err })
	return n, err
}

func (s guardedStage) ReadAt(p []byte, off int64) (n int, err error) {
	err = guarded("Stage.ReadAt", func() (err error) { n, err = s.Stage.ReadAt(p, off); return err })
	return n, err
}

func (s guardedStage) Open() (f *os.File, err error) {
	err = guarded("Stage.Open", func() (err error) { f, err = s.Stage.Open(); return err })
	return f, err
}

func (s guardedStage) Abort() error { return guarded("Stage.Abort", s.Stage.Abort) }
