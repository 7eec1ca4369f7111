package hostcall_test

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

func TestALookUpWaitsForAFileDescriptor(t *testing.T) {
	if !spool.IsOutOfFiles(syscall.EMFILE) {
		t.Skip("nobody tells here")
	}
	for name, c := range map[string]struct {
		fails int // calls that fail for lack of descriptors
		then  error
		want  error
		took  time.Duration
	}{
		"one is free soon":        {3, nil, nil, 800 * time.Millisecond},
		"none becomes free":       {1000, nil, syscall.EMFILE, hostcall.FilesWait},
		"something else is wrong": {1, syscall.EIO, syscall.EIO, 400 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s hostcall.Scarce
				start, calls := time.Now(), 0
				got, err := hostcall.Again(t.Context(), &s, syscall.EMFILE, func() (int, error) {
					if calls++; calls <= c.fails {
						return 0, syscall.EMFILE
					}
					return 7, c.then
				})
				assert.ErrorIs(t, err, c.want)
				if c.want == nil {
					assert.Equal(t, 7, got)
				}
				assert.Equal(t, c.took, time.Since(start))
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := hostcall.Again(ctx, new(hostcall.Scarce), syscall.EMFILE, func() (int, error) { return 0, syscall.EMFILE })
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// Whoever has waited longest goes, so that those who come last are not shut out by those
// who came first.
func TestFewWaitForAFileDescriptor(t *testing.T) {
	if !spool.IsOutOfFiles(syscall.EMFILE) {
		t.Skip("nobody tells here")
	}
	synctest.Test(t, func(t *testing.T) {
		var s hostcall.Scarce
		var sent, free atomic.Int64
		few := min(hostcall.MaxPatient, spool.OpenFileLimit()/8)
		for range few + 5 {
			go func() {
				_, err := hostcall.Again(t.Context(), &s, syscall.EMFILE, func() (int, error) {
					if free.Load() > 0 {
						return 0, nil
					}
					return 0, syscall.EMFILE
				})
				if errors.Is(err, syscall.EMFILE) {
					sent.Add(1)
				}
			}()
			synctest.Wait()
		}
		synctest.Wait()
		assert.EqualValues(t, 5, sent.Load())
		free.Store(1)
		time.Sleep(time.Second)
		synctest.Wait()
		assert.EqualValues(t, 5, sent.Load())
	})
}
