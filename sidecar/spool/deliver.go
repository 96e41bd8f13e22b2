package spool

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

const (
	quantum     = 4 << 20 // bytes of a turn
	saveEvery   = 1 << 20 // bytes after which progress is written down; it is every Config.Interval too
	damagedNote = "delivered as far as it is valid"
)

// errStalled says that the stream takes nothing for now.
var errStalled = errors.New("the stream takes nothing for now")

// discard is where what the backend sends goes: a spooled sender is one-way. It remembers that the backend has ended.
type discard struct {
	s     *Spool
	ended atomic.Bool
}

var _ link.TrySink = (*discard)(nil)

func (d *discard) Write(p []byte) (int, error) {
	d.s.count.answered.Add(len(p))
	return len(p), nil
}
func (d *discard) TryWrite(p []byte) (int, error) { return d.Write(p) }
func (d *discard) Abort(error)                    {}
func (d *discard) CloseWrite() error {
	d.ended.Store(true)
	return nil
}

// work is one turn of an entry, in a goroutine of its own.
func (s *Spool) work(ctx context.Context, e *entry) {
	defer s.wg.Done()
	err := lifecycle.Guard(s.log, "delivery", func() error { return s.turn(ctx, e) })
	s.mu.Lock()
	s.workers--
	s.mu.Unlock()
	s.turned(e, err)
	s.wakeUp()
}

// turn sends the next part of a connection. nil: there is more to send. errMore: all that is there was sent. io.EOF: the end
// was sent too. Everything else is a failure.
func (s *Spool) turn(ctx context.Context, e *entry) error {
	st, v, err := s.begin(ctx, e)
	if err != nil {
		return err
	}
	r := newReader(v, e.place)
	defer func() { e.place = r.close() }()
	for left := quantum; left > 0; {
		n, err := s.pass(r, st, left)
		left -= n
		s.progress(e, st, n)
		if err == errMore {
			if v, grown := s.lookAgain(e, r.at.offset); grown {
				r.refresh(v)
				continue
			}
		}
		if err == io.EOF {
			return s.sendEnd(e, st, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pass carries one buffer from the files to the stream.
func (s *Spool) pass(r *reader, st *link.Stream, most int) (int, error) {
	room, err := st.Room(s.cfg.Stall)
	if err != nil {
		return 0, brokenBy(st, err)
	}
	if room == 0 {
		return 0, errStalled
	}
	n := min(room, most, link.MaxPayload)
	buf := link.GetBuffer(n)
	n, err = r.Read(buf.Bytes()[:n])
	if n == 0 {
		buf.Release()
		return 0, err
	}
	if sendErr := st.SendBuffer(buf, n); sendErr != nil {
		return 0, brokenBy(st, sendErr)
	}
	return n, err
}

// begin returns the stream of an entry, a new one if it has none, and what is on disk.
func (s *Spool) begin(ctx context.Context, e *entry) (*link.Stream, view, error) {
	s.mu.Lock()
	st, v, acked := e.stream, s.view(e), e.acked
	s.mu.Unlock()
	if st != nil {
		return st, v, nil
	}
	at, err := s.resumeAt(v, acked)
	if err != nil {
		return nil, v, err
	}
	o := e.from
	if st, err = s.cfg.Stream(ctx, link.OpenRequest{Route: o.Route, Priority: o.Priority, Peer: o.Peer, Trace: o.Trace}); err != nil {
		return nil, v, refusal{err}
	}
	sink := &discard{s: s}
	st.SetSink(sink)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state == gone || s.closed {
		err := errs.New(errs.Canceled, "the connection is not delivered any more")
		st.Reset(err)
		return nil, v, err
	}
	s.tunnel.passed()
	e.stream, e.sink, e.start, e.sent, e.place = st, sink, at.offset, at.offset, at
	e.over, e.ended, e.early = false, false, false
	if acked > at.offset {
		s.count.repeated.Add(int(acked - at.offset))
	}
	s.log.Info("delivery begins", append(e.attrs(), streamAttrs(st, "from", at.offset, "delivered", acked)...)...)
	s.wg.Add(1)
	go s.watch(e, st)
	return st, v, nil
}

// refusal is an error of a stream that did not come to be.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func streamAttrs(st *link.Stream, more ...any) []any {
	return append([]any{logging.FieldStream, st.ID(), logging.FieldTunnel, st.Tunnel().Name()}, more...)
}

// resumeAt is where a new stream begins, when everything below acked was consumed by the peer of an earlier one.
func (s *Spool) resumeAt(v view, acked uint64) (place, error) {
	from := acked - min(acked, uint64(s.cfg.Overlap))
	if s.cfg.Resume == ResumeStart {
		from = 0
	}
	return seek(v, from, s.cfg.Resume == ResumeLine)
}

// view is what is on disk of an entry now. Called with mu held.
func (s *Spool) view(e *entry) view {
	v := view{dir: s.cfg.Dir, id: e.id, keys: s.store.keys, live: e.live, ours: e.ours, salved: e.salved}
	v.segs = append(v.segs, e.segs...)
	return v
}

// lookAgain says whether there is more of a live connection than up to offset, or it has ended.
func (s *Spool) lookAgain(e *entry, offset uint64) (view, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view(e), e.end > offset || !e.live
}

// progress notes what was sent and consumed, and lets go of files that are not needed any more.
func (s *Spool) progress(e *entry, st *link.Stream, n int) {
	s.mu.Lock()
	if e.stream != st {
		s.mu.Unlock()
		return
	}
	e.sent += uint64(n)
	s.count.sent.Add(n)
	s.advance(e, st)
	save := e.acked >= e.saved.acked+saveEvery
	s.mu.Unlock()
	if save {
		s.save(e)
	}
}

// advance takes what the peer has consumed. Called with mu held.
func (s *Spool) advance(e *entry, st *link.Stream) {
	acked := e.start + st.Acked()
	if acked <= e.start { // nothing on this stream
		return
	}
	s.route(e.from.Route).passed()
	if acked > e.acked { // more than any stream before
		e.acked, e.attempts, e.err = acked, 0, nil
	}
	if s.waiting.Load() > 0 { // what was consumed may be let go of
		s.free()
	}
}

// save writes progress down, and removes segments that were delivered and will not be sent again.
func (s *Spool) save(e *entry) {
	s.mu.Lock()
	if e.state == gone || e.saved.acked == e.acked {
		s.mu.Unlock()
		return
	}
	p := e.saved
	p.acked = e.acked
	e.saved.acked, e.saved.turn = p.acked, p.turn+1
	n := s.surplus(e)
	done := removal{id: e.id, segs: append([]segment(nil), e.segs[:n]...)}
	s.detach(e, n)
	s.mu.Unlock()
	if err := p.write(s.cfg.Dir, e.id); err != nil && !isFull(err) { // on a full disk bytes may be delivered twice, which is allowed
		s.failed("writing down progress", errs.Wrap(errs.SpoolFailed, err, "connection %v", e.id))
	}
	if n > 0 {
		s.discard([]removal{done})
	}
}

// surplus is how many segments, from the first, will not be sent again. Called with mu held.
func (s *Spool) surplus(e *entry) (n int) {
	if s.cfg.Resume == ResumeStart {
		return 0
	}
	keep := e.acked - min(e.acked, uint64(s.cfg.Overlap))
	for n < e.tail() && e.segs[n+1].base <= keep {
		n++
	}
	if s.cfg.Resume == ResumeLine { // the line may begin in the segment before
		n = max(n-1, 0)
	}
	return n
}

// sendEnd tells the backend that this was all.
func (s *Spool) sendEnd(e *entry, st *link.Stream, r *reader) error {
	s.mu.Lock()
	if e.stream != st {
		s.mu.Unlock()
		return io.EOF
	}
	e.ended, e.damaged, e.early = true, r.end == endDamaged, e.sink.ended.Load()
	e.deadline = time.Now().Add(s.cfg.EndWait)
	s.mu.Unlock()
	if r.torn > 0 {
		s.log.Warn("a spooled connection ends with bytes that are not whole", append(e.attrs(), "end", r.end, "at", r.at.offset, "bytes", r.torn)...)
		s.count.torn.Add(int(r.torn))
	}
	if err := st.CloseWrite(); err != nil {
		return brokenBy(st, err)
	}
	return io.EOF
}

// watch waits for a stream's end.
func (s *Spool) watch(e *entry, st *link.Stream) {
	defer s.wg.Done()
	err := st.Wait()
	s.mu.Lock()
	if e.stream != st {
		s.mu.Unlock()
		return
	}
	s.advance(e, st)
	e.over, e.overErr = true, err
	busy := e.state == working // its worker will see
	s.mu.Unlock()
	if !busy {
		s.turned(e, nil)
	}
	s.wakeUp()
}

// turned decides what comes after a turn that ended with err, or after a stream's end.
func (s *Spool) turned(e *entry, err error) {
	s.mu.Lock()
	if e.state == gone || e.state == held || s.closed {
		s.mu.Unlock()
		return
	}
	if st := e.stream; e.over && st != nil {
		e.stream = nil
		if e.overErr == nil && e.ended {
			s.mu.Unlock()
			s.delivered(e, st)
			return
		}
		if e.overErr != nil {
			err = brokenBy(st, e.overErr)
		}
	}
	switch err {
	case nil:
		e.state = ready
		if e.live {
			s.toTheBack(e)
		}
	case errMore:
		e.state = idle
		if e.pending() {
			e.state = ready
		}
	case errStalled:
		e.state = stalled
	case io.EOF:
		e.state = finishing
	default:
		s.mu.Unlock()
		s.setback(e, err)
		return
	}
	s.mu.Unlock()
}

// brokenBy is the error of a stream that broke: one that was never opened was refused.
func brokenBy(st *link.Stream, err error) error {
	if st.OpenLatency() == 0 {
		return refusal{err}
	}
	return err
}

// poke tells delivery that an entry has more bytes. Called with mu held.
func (s *Spool) poke(e *entry) {
	if e.state == idle {
		e.state = ready
		s.wakeUp()
	}
}

// delivered removes a connection that has reached the backend whole.
func (s *Spool) delivered(e *entry, st *link.Stream) {
	if e.damaged {
		s.setAside(e, errs.New(errs.SpoolCorrupt, "connection %v was %s; this is what is left of it", e.id, damagedNote))
		return
	}
	dir, ok := s.retire(e, nil)
	if !ok {
		return
	}
	s.count.delivered.Inc()
	s.log.Info("spooled connection delivered", append(e.attrs(), streamAttrs(st, "bytes", e.acked, "age_ms", time.Since(e.at).Milliseconds(), "early_end", e.early)...)...)
	s.erase(dir, e)
}
