package link

import "encoding/binary"

// dueBits are the control frames that a stream has to send. They are state, not a queue: a frame that is due twice is sent
// once, with what is true then.
type dueBits uint8

const (
	dueOpen dueBits = 1 << iota
	dueOpened
	dueCredit
	dueReset
)

// scheduler decides which frame goes next: control first, in the order in which it became due (so OPENs leave in the order
// of their ids), then data by priority, round-robin inside a priority.
//
// Each priority has a clock that runs with the bytes it sent, slower for higher ones; the slowest clock is served. So high
// has 8 times the share of normal and normal 8 times that of low while both have something to send, a stream that wakes up
// is served at once, and nobody starves.
type scheduler struct {
	ctlHead, ctlTail *Stream
	classes          [priorities]class
	clock            uint64 // of the class served last
	resetAcks        []uint32
}

type class struct {
	head, tail *Stream
	clock      uint64
}

// shift makes a class's clock run 8 times faster than that of the next higher one.
const classShift = 3

func (q *scheduler) init() { *q = scheduler{} }

func (q *scheduler) addControl(s *Stream) {
	if s.inCtl {
		return
	}
	s.inCtl, s.nextCtl = true, nil
	if q.ctlTail == nil {
		q.ctlHead = s
	} else {
		q.ctlTail.nextCtl = s
	}
	q.ctlTail = s
}

func (q *scheduler) popControl() {
	s := q.ctlHead
	q.ctlHead = s.nextCtl
	if q.ctlHead == nil {
		q.ctlTail = nil
	}
	s.inCtl, s.nextCtl = false, nil
}

func (q *scheduler) addData(s *Stream) {
	if s.inData {
		return
	}
	c := &q.classes[s.req.Priority]
	s.inData, s.nextData = true, nil
	if c.tail == nil {
		c.head = s
		c.clock = max(c.clock, q.clock) // no credit for having been idle
	} else {
		c.tail.nextData = s
	}
	c.tail = s
}

// popData takes the stream whose turn it is.
func (q *scheduler) popData() *Stream {
	var c *class
	for i := range q.classes {
		if k := &q.classes[i]; k.head != nil && (c == nil || k.clock < c.clock) {
			c = k
		}
	}
	if c == nil {
		return nil
	}
	s := c.head
	c.head = s.nextData
	if c.head == nil {
		c.tail = nil
	}
	s.inData, s.nextData = false, nil
	q.clock = c.clock
	return s
}

// charge moves the clock of a priority by n bytes sent.
func (q *scheduler) charge(p Priority, n int) {
	q.classes[p].clock += uint64(n+headerSize) << (classShift * uint(p))
}

// outgoing is a frame on its way to the lane.
type outgoing struct {
	head    [headerSize]byte
	payload []byte
	buf     *Buffer // held while the payload is written; nil for control
	packed  packed  // DATA: whether it is to be compressed, and how that went
}

func (o *outgoing) set(h header, payload []byte) {
	h.put(&o.head)
	o.payload = payload
}

// nextControl takes the first control frame that a stream has due. Called with mu held.
func (t *Tunnel) nextControl(out *outgoing, scratch []byte) bool {
	if n := len(t.sched.resetAcks); n > 0 {
		out.set(header{kind: typeReset, flags: flagAck, stream: t.sched.resetAcks[n-1]}, nil)
		t.sched.resetAcks = t.sched.resetAcks[:n-1]
		return true
	}
	for s := t.sched.ctlHead; s != nil; s = t.sched.ctlHead {
		sent := s.controlFrame(out, scratch)
		if s.due == 0 {
			t.sched.popControl()
		}
		if sent {
			return true
		}
	}
	return false
}

// controlFrame makes the stream's next control frame. Called with mu held.
func (s *Stream) controlFrame(out *outgoing, scratch []byte) bool {
	h := header{stream: s.id}
	switch {
	case s.due&dueOpen != 0:
		s.due &^= dueOpen
		h.kind = typeOpen
		out.set(h, s.req.append(scratch))
	case s.due&dueOpened != 0:
		s.due &^= dueOpened
		h.kind = typeOpened
		if s.packing.on {
			h.flags = flagCompress
		}
		out.set(h, nil)
	case s.due&dueReset != 0:
		s.due &^= dueReset
		h.kind = typeReset
		out.set(h, appendQuota(appendFailure(scratch, s.err), s.err.Quota))
	case s.due&dueCredit != 0:
		s.due &^= dueCredit
		consumed, limit := s.credit()
		h.kind, h.offset = typeCredit, limit
		if s.recv.finConsumed {
			h.flags = flagFin
		}
		out.set(h, binary.BigEndian.AppendUint64(scratch, consumed))
	default:
		return false
	}
	return true
}

// nextData cuts the next run of payload. Called with mu held.
func (t *Tunnel) nextData(out *outgoing, limit int) bool {
	for s := t.sched.popData(); s != nil; s = t.sched.popData() {
		if !s.pending() {
			continue // reset, or acknowledged beyond a replay, while it was queued
		}
		most := min(MaxPayload, int(t.peer.maxMessage)-headerSize)
		pack, limit := t.packs && t.lane != nil && s.packing.wants(s.send.end-s.send.next, &t.lane.rate), min(limit, most)
		if pack {
			limit = min(limit*s.packing.stretch, most)
		}
		run, fin := s.cut(limit)
		h := header{kind: typeData, stream: s.id, offset: run.off}
		switch {
		case run.buf == nil:
			h.kind = typeFin
		case fin:
			h.flags = flagFin
		}
		var payload []byte
		if run.buf != nil {
			payload = run.bytes()
		}
		out.set(h, payload)
		out.buf = run.buf
		if pack && len(payload) >= packLeast {
			out.packed = packed{stream: s, plain: len(payload)}
		} else if s.packing.on {
			s.packing.passed(len(payload))
		}
		t.count.sent.Add(uint64(len(payload)))
		t.sched.charge(s.req.Priority, len(payload))
		if s.pending() {
			t.sched.addData(s)
		}
		return true
	}
	return false
}
