package link

import (
	"maps"
	"slices"

	"fairlead/shared/errs"
)

// syncState is a lane's exchange of SYNC, each way.
type syncState struct {
	due     bool        // this side's is to be sent
	entries []syncEntry // what is left of it
	highest uint32      // last stream id this side knew
	peer    []syncEntry // what has come of the peer's
}

// syncChunk is how many streams one SYNC frame describes at most: a frame of 31 KiB. A peer may take only smaller ones.
const syncChunk = 1024

// attach makes l the tunnel's lane. On a resume it takes down the state that SYNC tells the peer: whatever was queued for
// the old lane is contained in it. Called with mu held.
func (t *Tunnel) attach(l *Lane) {
	if t.lane != nil {
		t.lane.displace()
	}
	t.lane, t.epoch = l, max(t.epoch, l.epoch)
	if l.synced {
		return
	}
	t.count.resumes.Add(1)
	t.tctl.goAwayDue = t.tctl.goAway != nil // it may have been lost
	t.sched.init()
	l.sync = syncState{due: true, highest: t.highest}
	for _, id := range t.ids() {
		s := t.streams[id]
		s.inCtl, s.inData, s.due = false, false, 0
		l.sync.entries = append(l.sync.entries, s.syncEntry())
	}
}

// ids lists the known streams, oldest first. Called with mu held.
func (t *Tunnel) ids() []uint32 { return slices.Sorted(maps.Keys(t.streams)) }

func (s *Stream) syncEntry() syncEntry {
	e := syncEntry{stream: s.id}
	set := func(on bool, flag uint8) {
		if on {
			e.flags |= flag
		}
	}
	if s.over { // reset here, and not yet answered
		e.flags, e.code = syncReset, s.err.Code
		return e
	}
	e.received = s.recv.next
	e.consumed, e.limit = s.credit()
	set(!s.t.client && !s.opened.IsZero(), syncOpened)
	set(!s.t.client && s.packing.on, syncCompress)
	set(s.recv.finKnown, syncFinReceived)
	set(s.recv.finConsumed, syncFinConsumed)
	return e
}

// nextSync makes the next SYNC frame.
func (l *Lane) nextSync(out *outgoing) {
	n := min(len(l.sync.entries), syncChunk, (int(l.t.peer.maxMessage)-headerSize)/syncEntrySize)
	payload := make([]byte, 0, n*syncEntrySize)
	for _, e := range l.sync.entries[:n] {
		payload = e.append(payload)
	}
	l.sync.entries = l.sync.entries[n:]
	h := header{kind: typeSync, offset: uint64(l.sync.highest)}
	if len(l.sync.entries) > 0 {
		h.flags = flagMore
	} else {
		l.sync.due, l.sync.entries = false, nil
	}
	out.set(h, payload)
}

// onSync takes the peer's state; with its last frame the lane carries the tunnel on. Called with mu held.
func (l *Lane) onSync(h header, p []byte) error {
	entries, err := parseSync(p)
	switch {
	case err != nil:
		return err
	case l.synced:
		return violation("SYNC without a resume")
	case len(l.sync.peer)+len(entries) > 2*max(l.t.cfg.MaxStreams, len(l.t.streams)+syncChunk):
		return violation("SYNC of more than %d streams", len(l.sync.peer)+len(entries))
	}
	l.sync.peer = append(l.sync.peer, entries...)
	if h.flags&flagMore != 0 {
		return nil
	}
	entries, l.sync.peer = l.sync.peer, nil
	if err := l.t.resync(entries, h.offset); err != nil {
		return err
	}
	l.synced = true
	if l.t.unacked > 0 || l.t.opening > 0 { // the answer to what the peer has already is still awaited
		l.hurryPulse()
	}
	l.wake.Signal()
	return nil
}

// resync takes every stream back to what the peer knows of it. Called with mu held.
func (t *Tunnel) resync(entries []syncEntry, peerHighest uint64) error {
	known := make(map[uint32]syncEntry, len(entries))
	for _, e := range entries {
		known[e.stream] = e
	}
	finished := t.takeFinished()
	for _, id := range t.ids() { // in this order, because OPENs must leave in the order of their ids
		s := t.streams[id]
		e, ok := known[id]
		if err := t.resyncStream(s, e, ok, peerHighest); err != nil {
			return err
		}
		if s.due != 0 {
			t.sched.addControl(s)
		}
	}
	for _, s := range finished {
		t.sched.addControl(s)
	}
	return nil
}

// takeFinished empties the control queue of what became due since attach, and returns the streams in it that are finished
// and forgotten since: their last CREDIT is owed all the same. Called with mu held.
func (t *Tunnel) takeFinished() (finished []*Stream) {
	for t.sched.ctlHead != nil {
		s := t.sched.ctlHead
		t.sched.popControl()
		if t.streams[s.id] != s && s.due != 0 {
			finished = append(finished, s)
		}
	}
	return finished
}

func (t *Tunnel) resyncStream(s *Stream, e syncEntry, known bool, peerHighest uint64) error {
	switch {
	case !known && t.client && uint64(s.id) > peerHighest: // its OPEN was lost
		if s.over {
			t.forget(s)
			return nil
		}
		s.due |= dueOpen
		return s.rewind(0, false)
	case !known && s.over:
		t.forget(s)
		return nil
	case !known:
		return s.finishedThere()
	case s.over:
		s.due = dueReset
		return nil
	case e.flags&syncReset != 0:
		s.fail(errs.New(e.code, "the stream was reset by the peer: %s", e.code.Info().Title))
		t.forget(s)
		return t.answerReset(s.id)
	}
	if e.consumed > e.received {
		return violation("stream %d: SYNC with %d bytes consumed of %d received", s.id, e.consumed, e.received)
	}
	if e.flags&syncOpened != 0 && t.client {
		s.markOpened(e.flags&syncCompress != 0)
	}
	if err := s.rewind(e.received, e.flags&syncFinReceived != 0); err != nil {
		return err
	}
	return s.acknowledge(e.consumed, e.limit, e.flags&syncFinConsumed != 0)
}

// finishedThere takes the news that the peer has forgotten the stream: it consumed everything sent, and its own direction
// is final. If that cannot be so, the stream was lost.
func (s *Stream) finishedThere() error {
	if d := &s.send; d.fin && d.highest == d.end && s.recv.finKnown {
		return s.acknowledge(d.end, d.limit, true)
	}
	s.fail(errs.New(errs.TunnelLost, "the peer no longer knows stream %d", s.id))
	s.t.forget(s)
	return nil
}
