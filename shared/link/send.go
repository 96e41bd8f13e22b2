package link

import (
	"io"
	"time"

	"fairlead/shared/errs"
)

// sendState is the direction from here to the peer. Offsets are absolute:
//
//	acked ≤ next ≤ end ≤ min(limit, acked+window)
type sendState struct {
	segs     segments // retained: what is written and not yet consumed by the peer
	cursor   int      // index in segs of the segment that holds next
	acked    uint64   // consumed by the peer
	told     uint64   // the same, but kept as the peer told it when the direction is dropped
	next     uint64   // to be put on the lane next; a resume takes it back
	end      uint64   // written by the application
	highest  uint64   // high-water mark of next: what is below is a replay
	limit    uint64   // credit from the peer
	window   uint64   // most that is retained
	grown    uint64   // part of window that is taken from the budget
	fin      bool     // the application ended the direction: end is final
	finSent  bool     // on this lane
	finAcked bool     // the peer consumed everything, the end included
}

// room is how many bytes may be written now. Called with mu held.
func (s *Stream) room() int {
	d := &s.send
	if d.limit > d.acked+d.window && d.end == d.acked+d.window {
		s.growSend() // own bound is in the way, not the peer's
	}
	return int(min(d.limit, d.acked+d.window) - d.end)
}

// growSend doubles what the stream may retain, as far as the budget goes. Called with mu held.
func (s *Stream) growSend() {
	d := &s.send
	more := min(d.window, uint64(s.t.cfg.MaxWindow)-min(d.window, uint64(s.t.cfg.MaxWindow)))
	if more > 0 && s.t.budget.take(int64(more)) {
		d.window += more
		d.grown += more
	}
}

// WaitRoom blocks until at least one byte can be written without waiting, and returns how many can.
func (s *Stream) WaitRoom() (int, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.waitRoom()
}

// Room is WaitRoom with a bound: it returns 0 when nothing can be written within wait.
func (s *Stream) Room(wait time.Duration) (int, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if room, err := s.roomNow(); room > 0 || err != nil || wait <= 0 {
		return room, err
	}
	late := false
	timer := time.AfterFunc(wait, func() {
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		late = true
		s.writable.Broadcast()
	})
	defer timer.Stop()
	for {
		s.writable.Wait()
		if room, err := s.roomNow(); room > 0 || err != nil || late {
			return room, err
		}
	}
}

// Acked is how many of the bytes sent the peer has consumed, as it last said: at a gateway, how many the backend's
// connection has taken. It stays true after the stream's end.
func (s *Stream) Acked() uint64 {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.send.told
}

// roomNow is what can be written now, or why nothing ever can again. Called with mu held.
func (s *Stream) roomNow() (int, error) {
	switch {
	case s.err != nil:
		return 0, s.err
	case s.send.fin || s.over:
		return 0, io.ErrClosedPipe
	}
	return s.room(), nil
}

func (s *Stream) waitRoom() (int, error) {
	for {
		if n, err := s.roomNow(); n > 0 || err != nil {
			return n, err
		}
		s.writable.Wait()
	}
}

// SendBuffer sends the first n bytes of b and takes b over. n is at most what WaitRoom returned.
func (s *Stream) SendBuffer(b *Buffer, n int) error {
	if n > classMedium {
		b = b.fit(n)
	}
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	switch {
	case s.err != nil:
		b.Release()
		return s.err
	case s.send.fin || s.over:
		b.Release()
		return io.ErrClosedPipe
	case n > s.room():
		b.Release()
		return errs.New(errs.Internal, "%d bytes sent into a room of %d", n, s.room())
	}
	if n <= classMedium {
		if s.send.segs.tack(b.b[:n]) { // many small reads must not retain a buffer each
			b.Release()
			s.written(n)
			return nil
		}
		b = b.fit(n)
	}
	s.send.segs.push(segment{buf: b, off: s.send.end, end: int32(n)})
	s.written(n)
	return nil
}

// Write copies p into the stream, waiting for room.
func (s *Stream) Write(p []byte) (int, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	total := 0
	for len(p) > 0 {
		room, err := s.waitRoom()
		if err != nil {
			return total, err
		}
		n := s.put(p[:min(len(p), room, MaxPayload)])
		s.written(n)
		p, total = p[n:], total+n
	}
	return total, nil
}

// put copies p behind what is retained: into the last buffer when it has space, else into a new one. Called with mu held.
func (s *Stream) put(p []byte) int {
	d := &s.send
	if d.segs.len() > 0 {
		// The lane may be writing the front of this buffer; what is appended lies behind it.
		last := d.segs.at(d.segs.len() - 1)
		if free := last.buf.b[last.end:]; len(free) > 0 {
			n := copy(free, p)
			last.end += int32(n)
			return n
		}
	}
	b := GetBuffer(len(p))
	n := copy(b.b, p)
	d.segs.push(segment{buf: b, off: d.end, end: int32(n)})
	return n
}

func (s *Stream) written(n int) {
	s.send.end += uint64(n)
	s.t.unacked += int64(n)
	s.t.sched.addData(s)
	s.t.writeNow(n)
}

// CloseWrite ends the direction to the peer, which reads io.EOF after the last byte.
func (s *Stream) CloseWrite() error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if !s.send.fin {
		s.send.fin = true
		s.writable.Broadcast()
		if s.pending() {
			s.t.sched.addData(s)
			s.t.writeNow(0)
		}
	}
	return nil
}

// ready queues the stream for the lane if it has something to send. Called with mu held.
func (s *Stream) ready() {
	if s.pending() {
		s.t.sched.addData(s)
		s.t.wakeLane()
	}
}

func (s *Stream) pending() bool {
	d := &s.send
	return !s.over && (d.next < d.end || d.fin && !d.finSent)
}

// cut takes the next run of at most limit bytes for the lane: from one buffer, which the caller holds until it is
// written. fin says that the run ends the direction. A bare end has no buffer. Called with mu held.
func (s *Stream) cut(limit int) (run segment, fin bool) {
	d := &s.send
	run.off = d.next
	if d.next < d.end {
		d.seek()
		seg := d.segs.at(d.cursor)
		run.buf = seg.buf
		run.start = seg.start + int32(d.next-seg.off)
		run.end = min(seg.end, run.start+int32(limit))
		run.buf.refs++
		d.next = run.endOffset()
	}
	if d.next == d.end && d.fin {
		d.finSent, fin = true, true
	}
	if run.off < d.highest {
		s.t.count.replayed.Add(min(d.next, d.highest) - run.off)
	}
	d.highest = max(d.highest, d.next)
	return run, fin
}

// acknowledge takes the peer's word of what it consumed and to where it grants credit. Called with mu held.
func (s *Stream) acknowledge(consumed, limit uint64, finConsumed bool) error {
	d := &s.send
	switch {
	case consumed > d.highest:
		return violation("stream %d: %d bytes consumed of %d sent", s.id, consumed, d.highest)
	case limit < consumed || limit < d.limit || consumed < d.acked:
		return violation("stream %d: credit to %d with %d consumed, after %d with %d", s.id, limit, consumed, d.limit, d.acked)
	case finConsumed && !(d.fin && consumed == d.end):
		return violation("stream %d: the end consumed at %d, which is not the end", s.id, consumed)
	}
	if consumed > d.acked {
		s.t.unacked -= int64(consumed - d.acked)
		d.release(consumed)
	}
	d.limit = limit
	s.writable.Broadcast()
	if finConsumed && !d.finAcked {
		d.finAcked = true
		s.settle()
	}
	return nil
}

// release lets go of buffers that are consumed to the end. A replay that is under way is overtaken.
func (d *sendState) release(consumed uint64) {
	d.acked, d.told = consumed, consumed
	d.next = max(d.next, consumed)
	for d.segs.len() > 0 && d.segs.at(0).endOffset() <= consumed {
		d.segs.pop().buf.Release()
		d.cursor--
	}
}

// seek puts cursor on the segment that holds next, from wherever it is. There is one.
func (d *sendState) seek() {
	d.cursor = min(max(d.cursor, 0), d.segs.len()-1)
	for d.cursor > 0 && d.segs.at(d.cursor).off > d.next {
		d.cursor--
	}
	for d.cursor < d.segs.len()-1 && d.segs.at(d.cursor).endOffset() <= d.next {
		d.cursor++
	}
}

// rewind takes the direction back to what the peer received, for a new lane. Called with mu held.
func (s *Stream) rewind(received uint64, finReceived bool) error {
	d := &s.send
	if received < d.acked || received > d.highest || finReceived && !(d.fin && received == d.end) {
		return violation("stream %d: SYNC says %d bytes received, of %d sent and %d consumed", s.id, received, d.highest, d.acked)
	}
	d.next = received
	d.finSent = finReceived
	s.ready()
	return nil
}

// drop releases everything retained. Called with mu held.
func (d *sendState) drop(s *Stream) {
	s.t.unacked -= int64(d.end - d.acked)
	for d.segs.len() > 0 {
		d.segs.pop().buf.Release()
	}
	d.segs = segments{}
	d.cursor = 0
	d.next, d.acked = d.end, d.end
}
