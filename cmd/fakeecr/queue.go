package main

import (
	"sync"
	"time"
)

const (
	// maxQueued bounds the lines that wait to be written. What is more is counted, and lost.
	maxQueued = 4096
	// linePause is how long lines are collected, so that busy servers write many at once.
	linePause = 20 * time.Millisecond
)

// queued is a pull that has ended, and when.
type queued struct {
	pull
	at time.Time
}

// queue has lines written behind the answers that they are about: a client does not wait
// for its line. Its goroutine lives while there are lines. It is safe for concurrent use.
type queue struct {
	write func(some []queued, lost int) // nobody calls it twice at a time

	writing sync.Mutex // held while lines are taken and written: they keep their order

	mu      sync.Mutex
	waiting []queued
	spare   []queued // its memory is used again
	lost    int
	running bool
}

// add has the line written soon.
func (q *queue) add(one *pull, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= maxQueued {
		q.lost++
		return
	}
	q.waiting = append(q.waiting, queued{*one, at})
	if !q.running {
		q.running = true
		go q.run()
	}
}

// run writes what there is at once, and then what has come in each pause.
func (q *queue) run() {
	for running := true; running; {
		q.flush()
		time.Sleep(linePause)
		q.mu.Lock()
		running = len(q.waiting) > 0
		q.running = running
		q.mu.Unlock()
	}
}

// flush writes all lines that wait.
func (q *queue) flush() {
	q.writing.Lock()
	defer q.writing.Unlock()
	q.mu.Lock()
	some, lost := q.waiting, q.lost
	q.waiting, q.spare, q.lost = q.spare, nil, 0
	q.mu.Unlock()
	if len(some) > 0 {
		q.write(some, lost)
	}
	clear(some)
	q.mu.Lock()
	q.spare = some[:0]
	q.mu.Unlock()
}
