package link

import (
	"io"
	"runtime/debug"
	"time"

	"fairlead/shared/errs"
)

// recvState is the direction from the peer to here. Offsets are absolute:
//
//	acked ≤ consumed ≤ next ≤ limit
type recvState struct {
	queue       segments // received, not yet consumed
	next        uint64   // everything below was received
	consumed    uint64   // everything below was taken by the reader or the sink
	acked       uint64   // consumed, as last told to the peer
	limit       uint64   // credit, as last told to the peer
	window      uint64   // credit beyond consumed
	grown       uint64   // part of window that is taken from the budget
	final       uint64   // the direction's size, once finKnown
	finKnown    bool
	finConsumed bool // the reader saw the end, or the sink was told
	inAcks      bool // in the tunnel's list for the delayed acknowledgement
	busy        bool // somebody is delivering to the sink
	drains      int  // goroutines that deliver to or abort the sink
	sink        Sink
	epoch       time.Time // window tuning: when consumed was epochStart
	epochStart  uint64
}

// ackDelay bounds how long the peer retains a few consumed bytes that are too few for a CREDIT of their own.
const ackDelay = 50 * time.Millisecond

// Window tuning. A window is doubled while a full one is consumed within growFactor round trips, or within growFloor
// where the round trip is shorter: small windows cost CREDIT frames.
const (
	growFactor = 4
	growFloor  = 5 * time.Millisecond
)

// onData takes a DATA frame whose payload is buf.b[:n]. keep says that the buffer was taken over.
func (t *Tunnel) onData(s *Stream, h header, buf *Buffer, n int) (keep bool, err error) {
	d := &s.recv
	end := h.offset + uint64(n)
	switch {
	case h.flags&flagCompressed != 0:
		return false, violation("stream %d: compressed DATA, which was not agreed on", s.id)
	case h.offset > d.next:
		return false, violation("stream %d: gap: DATA at %d, expected %d", s.id, h.offset, d.next)
	case end > d.limit || end < h.offset:
		return false, violation("stream %d: DATA to %d over the limit of %d", s.id, end, d.limit)
	case d.finKnown && end > d.final:
		return false, violation("stream %d: DATA to %d after the end at %d", s.id, end, d.final)
	}
	if h.flags&flagFin != 0 {
		if err := s.learnEnd(end); err != nil {
			return false, err
		}
	}
	if end > d.next {
		fresh := segment{buf: buf, off: d.next, start: int32(d.next - h.offset), end: int32(n)} // what is before it came already
		t.count.received.Add(end - d.next)
		d.next = end
		keep = s.deliver(fresh)
	}
	s.deliverEnd()
	return keep, nil
}

// learnEnd takes the final size of the direction.
func (s *Stream) learnEnd(final uint64) error {
	d := &s.recv
	if d.finKnown && d.final != final || final < d.next || final > d.limit {
		return violation("stream %d: end at %d, with %d received, the limit %d and the end known as %d", s.id, final, d.next, d.limit, d.final)
	}
	d.finKnown, d.final = true, final
	return nil
}

// deliver hands received bytes to the sink as far as it takes them, and queues the rest. It says whether it kept the
// buffer. Called with mu held, which it gives up while it writes.
func (s *Stream) deliver(seg segment) (keep bool) {
	d := &s.recv
	if try, ok := d.sink.(TrySink); ok && !d.busy && d.queue.len() == 0 {
		d.busy = true
		n, err := s.call(func() (int, error) { return try.TryWrite(seg.bytes()) })
		d.busy = false
		s.consume(n, err)
		seg.start, seg.off = seg.start+int32(n), seg.off+uint64(n)
	}
	switch {
	case s.over:
		s.readable.Broadcast() // Wait waits for busy
		return false
	case seg.start == seg.end:
	case s.t.waiting >= 2*s.t.cfg.Memory:
		s.reset(errs.New(errs.MemoryLimit, "%d bytes wait for their receivers on this tunnel", s.t.waiting))
		return false
	default:
		keep = s.enqueue(seg)
	}
	if d.sink != nil {
		s.startDrain()
	} else {
		s.readable.Broadcast()
	}
	return keep
}

// enqueue queues a segment; a small one is copied, so that it does not pin a large buffer. What a newer lane brought while
// this one was being delivered comes after it.
func (s *Stream) enqueue(seg segment) (keep bool) {
	n := int(seg.end - seg.start)
	if q := &s.recv.queue; n <= classMedium && q.len() > 0 && q.at(q.len()-1).endOffset() == seg.off && q.tack(seg.bytes()) {
		s.t.waiting += int64(n) // a flood of small frames must not hold a buffer each
		return false
	}
	if keep = classOf(n) == classOf(len(seg.buf.b)); !keep {
		small := GetBuffer(n)
		copy(small.b, seg.bytes())
		seg = segment{buf: small, off: seg.off, end: int32(n)}
	}
	s.t.waiting += int64(n)
	q := &s.recv.queue
	if q.len() > 0 && q.at(0).off > seg.off {
		q.pushFront(seg)
	} else {
		q.push(seg)
	}
	return keep
}

// dequeue takes the first segment. The caller releases its buffer.
func (s *Stream) dequeue() segment {
	seg := s.recv.queue.pop()
	s.t.waiting -= int64(seg.end - seg.start)
	return seg
}

// SetSink lets received bytes go to sink from now on, from the lane's reader or a goroutine of the tunnel. A stream with a
// sink must not be read. If the stream has failed already, the sink is aborted.
func (s *Stream) SetSink(sink Sink) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.recv.sink = sink
	switch {
	case s.over && s.err != nil:
		s.goDrain(func() { sink.Abort(s.err) })
	case s.recv.queue.len() > 0:
		s.startDrain()
	default:
		s.deliverEnd()
	}
}

// startDrain delivers the queue in a goroutine, unless one does already. Called with mu held.
func (s *Stream) startDrain() {
	if d := &s.recv; !d.busy && (d.queue.len() > 0 || s.endReached()) {
		d.busy = true
		s.goDrain(s.drain)
	}
}

// goDrain runs f in a goroutine that the stream's Wait and the tunnel's Wait wait for. Called with mu held.
func (s *Stream) goDrain(f func()) {
	s.recv.drains++
	s.t.handlers.Add()
	go func() {
		defer s.t.handlers.Done()
		defer func() {
			p := recover()
			s.t.mu.Lock()
			defer s.t.mu.Unlock()
			if p != nil {
				s.recv.busy = false
				s.panicked(p)
			}
			s.recv.drains--
			s.readable.Broadcast()
		}()
		f()
	}()
}

// Recover is to be deferred by whoever serves the stream: a panic ends this stream, and nothing else.
func (s *Stream) Recover() {
	if p := recover(); p != nil {
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		s.panicked(p)
	}
}

// call calls the sink without mu. A panic of the sink ends the stream and is the error. Called with mu held.
func (s *Stream) call(f func() (int, error)) (n int, err error) {
	s.t.mu.Unlock()
	defer func() {
		p := recover()
		s.t.mu.Lock()
		if p != nil {
			s.panicked(p)
			err = s.err
		}
	}()
	return f()
}

// panicked ends the one stream whose handler or sink panicked. Called with mu held, on the stack of the panic.
func (s *Stream) panicked(p any) {
	s.t.cfg.Logger.Error("panic in a stream", "stream", s.id, "route", s.req.Route, "code", errs.Panicked.String(), "panic", p, "stack", string(debug.Stack()))
	s.reset(errs.New(errs.Panicked, "a fault while serving stream %d to %s", s.id, s.req.Route))
}

// drain writes the queue to the sink until it is empty, then the end if it is reached.
func (s *Stream) drain() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	d := &s.recv
	for !s.over && d.queue.len() > 0 {
		seg := s.dequeue()
		n, err := s.call(func() (int, error) { return d.sink.Write(seg.bytes()) })
		seg.buf.Release()
		s.consume(n, err)
	}
	if !s.over && s.endReached() {
		_, err := s.call(func() (int, error) { return 0, d.sink.CloseWrite() })
		s.endConsumed(err)
	}
	d.busy = false
}

func (s *Stream) endReached() bool {
	d := &s.recv
	return d.finKnown && !d.finConsumed && d.consumed == d.final
}

// deliverEnd tells the sink that everything has come, or wakes the reader. Called with mu held, which it gives up while it
// tells.
func (s *Stream) deliverEnd() {
	d := &s.recv
	switch {
	case s.over || d.busy || !s.endReached():
	case d.sink == nil:
		s.readable.Broadcast()
	default:
		try, ok := d.sink.(TrySink)
		if !ok {
			s.startDrain()
			return
		}
		d.busy = true
		_, err := s.call(func() (int, error) { return 0, try.CloseWrite() })
		d.busy = false
		s.endConsumed(err)
		s.readable.Broadcast() // Wait waits for busy
	}
}

// endConsumed notes that the receiver knows the end. Called with mu held.
func (s *Stream) endConsumed(err error) {
	switch {
	case s.over:
	case err != nil:
		s.reset(s.Broken(err, "writing to"))
	default:
		s.recv.finConsumed = true
		s.t.due(s, dueCredit)
		s.settle()
	}
}

// Broken is the error of a stream whose connection failed on this side: the application's at the sidecar, the backend's at
// the gateway. doing is what failed, such as "reading from".
func (s *Stream) Broken(err error, doing string) *errs.Error {
	if s.t.client {
		return errs.Wrap(errs.ConnectionBroken, err, "%s the application", doing)
	}
	return errs.Wrap(errs.BackendBroken, err, "%s the backend of route %s", doing, s.req.Route)
}

// consume notes that n bytes were taken, and that taking more failed if err is not nil. Called with mu held.
func (s *Stream) consume(n int, err error) {
	d := &s.recv
	if s.over {
		return
	}
	d.consumed += uint64(n)
	switch {
	case err != nil:
		s.reset(s.Broken(err, "writing to"))
	case d.finKnown && d.consumed == d.final: // the CREDIT of the end tells it
	case d.consumed-d.acked >= s.ackThreshold():
		s.t.due(s, dueCredit)
	case d.consumed > d.acked && !d.inAcks:
		d.inAcks = true
		s.t.ackLater(s)
	}
}

// ackThreshold is the number of consumed bytes that is worth a CREDIT: an eighth of the window, because at half of it a
// long path runs dry; at least 128 KiB, because a CREDIT costs more than copying what it frees; but never over half.
func (s *Stream) ackThreshold() uint64 {
	w := s.recv.window
	return min(max(w/8, 128<<10), w/2)
}

// ackLater sends the acknowledgements of all streams that wait for one, together, after ackDelay. Called with mu held.
func (t *Tunnel) ackLater(s *Stream) {
	t.acks = append(t.acks, s)
	if len(t.acks) > 1 {
		return
	}
	if t.ackTimer == nil {
		t.ackTimer = time.AfterFunc(ackDelay, t.sendAcks)
		return
	}
	t.ackTimer.Reset(ackDelay)
}

func (t *Tunnel) sendAcks() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.acks {
		s.recv.inAcks = false
		if !s.over && s.recv.consumed > s.recv.acked {
			t.due(s, dueCredit)
		}
	}
	clear(t.acks)
	t.acks = t.acks[:0]
}

// credit is what a CREDIT says now. Called with mu held.
func (s *Stream) credit() (consumed, limit uint64) {
	d := &s.recv
	s.tuneWindow()
	d.acked = d.consumed
	d.limit = max(d.limit, d.consumed+d.window)
	return d.acked, d.limit
}

// tuneWindow doubles the window while the path empties it quickly, as far as the budget goes. Called with mu held.
func (s *Stream) tuneWindow() {
	d := &s.recv
	if s.over || d.consumed-d.epochStart < d.window || d.window >= uint64(s.t.cfg.MaxWindow) {
		return
	}
	now := time.Now()
	quick := growFactor * max(s.t.rtt.least, growFloor)
	more := min(d.window, uint64(s.t.cfg.MaxWindow)-d.window)
	if now.Sub(d.epoch) < quick && s.t.budget.take(int64(more)) {
		d.window += more
		d.grown += more
	}
	d.epoch, d.epochStart = now, d.consumed
}

// Read blocks for received bytes. It returns io.EOF after the peer's end, and the reset's error after a reset.
func (s *Stream) Read(p []byte) (int, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	d := &s.recv
	for {
		switch {
		case d.queue.len() > 0 && !s.over:
			seg := d.queue.at(0)
			n := copy(p, seg.bytes())
			seg.start, seg.off = seg.start+int32(n), seg.off+uint64(n)
			s.t.waiting -= int64(n)
			if seg.start == seg.end {
				d.queue.pop().buf.Release()
			}
			s.consume(n, nil)
			return n, nil
		case s.err != nil:
			return 0, s.err
		case s.endReached():
			s.endConsumed(nil)
			return 0, io.EOF
		case d.finConsumed:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		s.readable.Wait()
	}
}

// drop releases everything received. Called with mu held.
func (d *recvState) drop(s *Stream) {
	for d.queue.len() > 0 {
		s.dequeue().buf.Release()
	}
	d.queue = segments{}
}
