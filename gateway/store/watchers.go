package store

import (
	"context"
	"sync"
	"sync/atomic"
)

// watcherBacklog is how many events wait for a watcher. Of more it is told that it has missed some.
const watcherBacklog = 256

// watchers are those who are told of events.
type watchers struct {
	mu  sync.Mutex
	all map[*watcher]struct{}
}

type watcher struct {
	events chan Event
	missed atomic.Bool
}

func (ws *watchers) add() *watcher {
	w := &watcher{events: make(chan Event, watcherBacklog)}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all == nil {
		ws.all = map[*watcher]struct{}{}
	}
	ws.all[w] = struct{}{}
	return w
}

func (ws *watchers) remove(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.all, w)
}

// tell never blocks.
func (ws *watchers) tell(kind Kind, name string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		select {
		case w.events <- Event{Kind: kind, Name: name}:
		default:
			w.missed.Store(true)
		}
	}
}

// run tells until ctx ends or closed is closed.
func (w *watcher) run(ctx context.Context, closed <-chan struct{}, tell func(Event)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-closed:
			return nil
		case e := <-w.events:
			if w.missed.Swap(false) {
				tell(Event{Kind: Missed})
			}
			tell(e)
		}
	}
}
