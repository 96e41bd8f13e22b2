// Package tunnel keeps the sidecar's tunnels to its gateways: it dials, reconnects with backoff, resumes, grows and shrinks
// the pool, and places streams.
package tunnel

import (
	"slices"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// State of a tunnel.
type State string

// The states. A tunnel begins disconnected; failed is left only when a person or an API asks to try again.
const (
	Disconnected State = "disconnected" // no tunnel; waiting for the next attempt
	Connecting   State = "connecting"   // an attempt at a new tunnel is under way
	Connected    State = "connected"    // a lane carries the tunnel
	Resuming     State = "resuming"     // the lane is lost, streams are kept; attempts to resume
	Draining     State = "draining"     // a lane carries the tunnel, but it takes no new streams: others do
	Failed       State = "failed"       // gave up
)

// up says whether a lane carries a tunnel in this state.
func (s State) up() bool { return s == Connected || s == Draining }

// transitions says which state may follow which.
var transitions = map[State][]State{
	Disconnected: {Connecting, Failed},
	Connecting:   {Connected, Disconnected, Failed},
	Connected:    {Resuming, Draining, Disconnected, Failed}, // failed: reconnecting is off
	Resuming:     {Connected, Disconnected, Failed},
	Draining:     {Resuming, Disconnected, Failed},
	Failed:       {Connecting, Disconnected},
}

// Event is a change of state, or an attempt that failed, for people to read.
type Event struct {
	Time     time.Time `json:"time"`
	Tunnel   int       `json:"tunnel"` // slot in the pool, from 1
	State    State     `json:"state"`
	Attempt  int       `json:"attempt,omitempty"`
	DelayMS  int64     `json:"delay_ms,omitempty"` // until the next attempt
	Endpoint string    `json:"endpoint,omitempty"`
	Code     string    `json:"code,omitempty"`
	Reason   string    `json:"reason"`
}

// historySize is how many events are kept.
const historySize = 100

// history keeps the last events of all tunnels; it outlives each of them.
type history struct {
	mu     sync.Mutex
	events []Event
}

func (h *history) add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.events) == historySize {
		h.events = slices.Delete(h.events, 0, 1)
	}
	h.events = append(h.events, e)
}

func (h *history) list() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// machine is the state machine of one slot. Its slot's goroutine moves it, but for the step from connected to draining, which is
// made by whoever decides that.
type machine struct {
	state State
	since time.Time
}

// move changes the state, which must be a transition that exists. Staying is none, and is allowed.
func (m *machine) move(to State, now time.Time) error {
	if to == m.state {
		return nil
	}
	if !slices.Contains(transitions[m.state], to) {
		return errs.New(errs.Internal, "a tunnel cannot go from %s to %s", m.state, to)
	}
	m.state, m.since = to, now
	return nil
}
