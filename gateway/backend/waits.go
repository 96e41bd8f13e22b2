package backend

import (
	"context"
	"time"
)

// Waits is where the time of a dial went. What took no time is zero. It is for one dial at a time and one reader after it.
type Waits struct {
	Queue     time.Duration // for a turn, because others dial the backend too
	Pace      time.Duration // for the pace of dials
	TCP       time.Duration // for the backend to accept a connection
	Handshake time.Duration // for the SSH handshake and login
	Slot      time.Duration // for a place on an SSH connection, apart from making one
	Channel   time.Duration // for the backend to connect to the target
}

type waitsKey struct{}

// WithWaits returns a context for Set.Dial that has it note where the time went.
func WithWaits(ctx context.Context) (context.Context, *Waits) {
	w := new(Waits)
	return context.WithValue(ctx, waitsKey{}, w), w
}

// waitsOf returns nil when nobody wants to know; its methods do nothing then.
func waitsOf(ctx context.Context) *Waits {
	w, _ := ctx.Value(waitsKey{}).(*Waits)
	return w
}

// parts are all waits, with their names as logs have them.
func (w *Waits) parts() [6]struct {
	name string
	took time.Duration
} {
	return [6]struct {
		name string
		took time.Duration
	}{
		{"queue", w.Queue}, {"pace", w.Pace}, {"tcp", w.TCP}, {"handshake", w.Handshake}, {"slot", w.Slot}, {"channel", w.Channel},
	}
}

// Longest names what was waited for longest: queue, pace, tcp, handshake, slot, channel, or "" when there were no waits.
func (w *Waits) Longest() (name string, took time.Duration) {
	for _, p := range w.parts() {
		if p.took > took {
			name, took = p.name, p.took
		}
	}
	return name, took
}

// Fields are for a log line: what was waited for longest, and each wait of a millisecond or more.
func (w *Waits) Fields() []any {
	if w == nil {
		return nil
	}
	longest, _ := w.Longest()
	if longest == "" {
		return nil
	}
	fields := []any{"waited_for", longest}
	for _, p := range w.parts() {
		if ms := p.took.Milliseconds(); ms > 0 {
			fields = append(fields, p.name+"_ms", ms)
		}
	}
	return fields
}

// queued notes a wait for a turn, of which the pace took a part.
func (w *Waits) queued(took, paced time.Duration) {
	if w != nil {
		w.Queue += took - paced
		w.Pace += paced
	}
}

func (w *Waits) connected(took time.Duration) {
	if w != nil {
		w.TCP += took
	}
}

func (w *Waits) opened(took time.Duration) {
	if w != nil {
		w.Channel += took
	}
}

// slotted notes a wait in a pool. dial is where the time of the connection went that was waited for, nil when there was
// none: of it counts what fits the wait, since others may have begun it earlier.
func (w *Waits) slotted(took time.Duration, dial *Waits) {
	if w == nil {
		return
	}
	if dial != nil {
		// The last things first: they are the ones that the wait contained.
		for _, p := range []struct {
			to   *time.Duration
			took time.Duration
		}{{&w.Handshake, dial.Handshake}, {&w.TCP, dial.TCP}, {&w.Pace, dial.Pace}, {&w.Queue, dial.Queue}} {
			part := min(p.took, took)
			*p.to += part
			took -= part
		}
	}
	w.Slot += took
}
