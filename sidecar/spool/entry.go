package spool

import (
	"context"
	"time"

	"fairlead/shared/link"
)

// Origin says where a connection came from and where it goes.
type Origin struct {
	Listener string
	Route    string
	Priority link.Priority
	Peer     string // the application's address
	Trace    string // W3C trace context
}

// textLimit bounds each text of an Origin, in bytes; the tunnel's protocol has the same.
const textLimit = 255

func (o Origin) clip() Origin {
	clip := func(s string) string { return s[:min(len(s), textLimit)] }
	o.Listener, o.Route, o.Peer, o.Trace = clip(o.Listener), clip(o.Route), clip(o.Peer), clip(o.Trace)
	return o
}

// state is what delivery does with an entry.
type state uint8

const (
	idle      state = iota // all that is there was sent; more may come
	ready                  // there is something to do, once it is its turn
	working                // a worker has it
	stalled                // the stream takes no more for now
	finishing              // everything was sent; the stream has to end
	held                   // it cannot be delivered: its key is missing
	gone                   // delivered or dropped
)

// entry is one connection in the spool. All is guarded by the Spool's mutex, but what is marked as the writer's or the
// worker's.
type entry struct {
	id   ID
	from Origin
	at   time.Time // when it was accepted

	// What is on disk.
	segs      []segment
	end       uint64 // payload bytes, once known: always of those that this process has accepted
	known     bool
	live      bool // the application may send more
	ours      bool // this process has accepted it
	clean     bool // its end was acknowledged
	writing   bool // the writer is changing files
	sealed    bool // the current segment was removed: the writer has to begin another
	encrypted bool // as the head of a recovered one says
	aside     bool // it is in quarantine
	blocked   bool // reading from the application waits for space
	cut       context.CancelCauseFunc

	// Delivery.
	state    state
	turn     time.Time // the order within a priority
	stream   *link.Stream
	sink     *discard
	start    uint64 // where in the connection the stream began
	sent     uint64 // position up to which the stream was given bytes
	ended    bool   // the stream was given the end
	damaged  bool   // the end that it was given is where damage begins
	acked    uint64 // the peer has consumed everything below
	saved    progress
	over     bool // the stream has ended, by overErr
	overErr  error
	attempts int // failed ones, since bytes were consumed
	after    time.Time
	deadline time.Time // for the stream's end
	err      error     // why it is not delivered
	salved   bool
	early    bool // the backend ended its direction before it had everything

	place place // the worker's: where it goes on reading
}

// size is how many bytes the entry takes on disk.
func (e *entry) size() (sum int64) {
	for _, s := range e.segs {
		sum += s.size
	}
	return sum
}

// tail is the last segment's index; -1: there is none.
func (e *entry) tail() int { return len(e.segs) - 1 }

// pending says whether there is something that the stream was not given.
func (e *entry) pending() bool { return !e.live || e.end > e.sent || e.stream == nil }
