package link

import "sync"

// tally counts goroutines. Unlike a sync.WaitGroup it may be added to while somebody waits: a stream of a tunnel that is
// over may still get a sink.
type tally struct {
	mu   sync.Mutex
	zero sync.Cond // made by the first Wait
	n    int
}

// Add counts one more goroutine.
func (t *tally) Add() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

// Done counts one less.
func (t *tally) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.zero.L != nil {
		t.zero.Broadcast()
	}
}

// Wait blocks until there is none.
func (t *tally) Wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.zero.L = &t.mu
	for t.n > 0 {
		t.zero.Wait()
	}
}
