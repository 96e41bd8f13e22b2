package audit

import (
	"sync/atomic"
	"time"
)

// States of an entry. Whoever moves it on by compare-and-swap owns what follows.
const (
	entryWaiting   = iota // in the queue
	entryTaken            // the writer has it in its hands
	entryAnswered         // the writer has decided; the answer is in done
	entryAbandoned        // its Record gave up before the writer took it; Record has counted it
	entryLate             // its Record gave up while the writer had it; the writer counts it
)

// entry is one record on its way through the queue.
type entry struct {
	at    time.Time
	body  []byte // what appendEvent made
	state atomic.Int32
	done  chan error // room for one
	timer *time.Timer
}

func newEntry() *entry {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &entry{done: make(chan error, 1), timer: t, body: make([]byte, 0, 512)}
}

func (en *entry) fill(at time.Time, e *Event) {
	en.at = at
	en.body = appendEvent(en.body[:0], e)
	en.state.Store(entryWaiting)
}

// take reports whether the record is still wanted.
func (en *entry) take() bool { return en.state.CompareAndSwap(entryWaiting, entryTaken) }

// answer gives the writer's answer, and reports whether nobody waited for it any more.
func (en *entry) answer(err error) (late bool) {
	if en.state.Swap(entryAnswered) == entryLate {
		return true
	}
	en.done <- err
	return false
}
