package fault

import (
	"context"
	"sync"
)

// mode is what the proxy does with all bytes.
type mode int

const (
	open       mode = iota
	stalled         // hold them back
	swallowing      // drop them
)

// gate tells every connection the mode, and wakes who waits for another.
type gate struct {
	mu      sync.Mutex
	mode    mode
	changed chan struct{} // closed at the next change
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

func (g *gate) set(m mode) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mode == m {
		return
	}
	g.mode = m
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) now() (mode, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode, g.changed
}

// wait returns when the mode is one that pass accepts, with that mode; false when ctx ends first.
func (g *gate) wait(ctx context.Context, pass func(mode) bool) (mode, bool) {
	for {
		m, changed := g.now()
		if pass(m) {
			return m, true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return m, false
		}
	}
}

func isOpen(m mode) bool     { return m == open }
func notStalled(m mode) bool { return m != stalled }
