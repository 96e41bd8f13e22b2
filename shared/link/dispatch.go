package link

import (
	"runtime/debug"
	"time"

	"fairlead/shared/errs"
)

// tunnelControl is what a tunnel, not a stream, has to say. Like dueBits it is state: of several renewed tokens the
// newest is sent.
type tunnelControl struct {
	token     string  // client: to be sent
	goAway    *GoAway // gateway: to be sent once on each lane
	goAwayAt  time.Time
	goAwayDue bool
	answer    *errs.Error
	answered  bool      // gateway: the answer to AUTH is to be sent
	expires   time.Time // of the token that was taken
	checking  bool      // gateway: Config.Renew runs
	nextToken string    // gateway: came while it ran
}

// frame makes the next control frame of the tunnel. Called with mu held.
func (c *tunnelControl) frame(out *outgoing, scratch []byte) bool {
	switch {
	case c.token != "":
		out.set(header{kind: typeAuth}, append(scratch, c.token...))
		c.token = ""
	case c.answered:
		c.answered = false
		e := c.answer
		if e == nil {
			e = &errs.Error{}
		}
		out.set(header{kind: typeAuth, flags: flagAnswer, offset: uint64(max(c.expires.Unix(), 0))}, appendFailure(scratch, e))
	case c.goAwayDue:
		c.goAwayDue = false
		out.set(header{kind: typeGoAway}, c.goAway.after(time.Since(c.goAwayAt)).append(scratch))
	default:
		return false
	}
	return true
}

// dispatch acts on one frame. Called with mu held; keep says that the buffer was taken over.
func (l *Lane) dispatch(h header, buf *Buffer, n int) (keep bool, err error) {
	t, p := l.t, buf.b[:n]
	if t.lane != l {
		return false, errs.New(errs.Displaced, "a newer lane carries the tunnel")
	}
	if t.err != nil {
		return false, nil // parting: what comes now is for streams that are gone
	}
	switch h.kind {
	case typePing:
		l.pulse.pong, l.pulse.pongToken = true, h.offset
		t.wakeLane()
		return false, nil
	case typePong:
		l.onPong(h.offset)
		return false, nil
	case typeSync:
		return false, l.onSync(h, p)
	case typeReset:
		if h.stream == 0 {
			return false, t.onEnd(p)
		}
	}
	if !l.synced {
		return false, violation("%v before SYNC", h.kind)
	}
	switch h.kind {
	case typeOpen:
		return false, t.onOpen(h, p)
	case typeData, typeFin, typeCredit, typeOpened, typeReset:
		return t.onStream(h, buf, n)
	case typeAuth:
		return false, t.onAuth(h, p)
	case typeGoAway:
		return false, t.onGoAway(p)
	}
	if h.kind&typeIgnorable != 0 {
		return false, nil
	}
	return false, violation("unexpected %v", h.kind)
}

// onEnd takes the peer's end of the tunnel.
func (t *Tunnel) onEnd(p []byte) error {
	f := fields{b: p}
	e := f.failure()
	if f.err != nil {
		return f.err
	}
	lane := t.lane
	t.lane = nil // nothing to tell the peer
	t.end(e, false)
	t.lane = lane
	lane.leaving = time.AfterFunc(farewellTime, lane.conn.Abort) // its close frame follows
	return nil
}

// onOpen begins a stream that the sidecar opened.
func (t *Tunnel) onOpen(h header, p []byte) error {
	req, err := parseOpen(p)
	switch {
	case err != nil:
		return err
	case t.client:
		return violation("OPEN from the gateway")
	case h.stream == 0:
		return violation("OPEN of stream 0")
	case h.stream <= t.highest:
		return nil // repeated after a resume
	}
	t.highest = h.stream
	if t.cfg.Accept == nil || len(t.streams) >= t.cfg.MaxStreams {
		// The answer is kept like that of any reset stream as long as there are few; a flood is answered from no state.
		return t.refuse(h.stream, req)
	}
	s := t.addStream(h.stream, req)
	t.handlers.Add()
	go t.serve(s)
	return nil
}

// refuse resets a stream over the limit. Its state costs little, but is bounded too.
func (t *Tunnel) refuse(id uint32, req OpenRequest) error {
	if len(t.streams) >= 2*t.cfg.MaxStreams {
		return errs.New(errs.ProtocolViolation, "%d streams opened over the limit of %d without taking an answer", t.cfg.MaxStreams, t.cfg.MaxStreams)
	}
	s := t.addStream(id, req)
	s.reset(errs.New(errs.StreamLimit, "the tunnel has %d streams, which is the limit", t.cfg.MaxStreams))
	return nil
}

// serve runs Config.Accept for a stream.
func (t *Tunnel) serve(s *Stream) {
	defer t.handlers.Done()
	defer s.Recover()
	t.cfg.Accept(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.opened.IsZero() {
		s.reset(errs.New(errs.Internal, "the stream was neither accepted nor refused"))
	}
}

// onStream takes a frame of an existing stream. One of a stream that is unknown but was opened is late: the stream is
// finished here.
func (t *Tunnel) onStream(h header, buf *Buffer, n int) (keep bool, err error) {
	s, ok := t.streams[h.stream]
	if !ok {
		return false, t.onUnknown(h)
	}
	switch h.kind {
	case typeReset:
		return false, t.onReset(s, h, buf.b[:n])
	case typeCredit:
		return false, s.onCredit(h, buf.b[:n])
	}
	if s.over {
		return false, nil
	}
	switch h.kind {
	case typeData:
		return t.onData(s, h, buf, n)
	case typeFin:
		if err := s.learnEnd(h.offset); err != nil {
			return false, err
		}
		if h.offset != s.recv.next {
			return false, violation("stream %d: end at %d, with %d received", s.id, h.offset, s.recv.next)
		}
		s.deliverEnd()
	case typeOpened:
		if !t.client {
			return false, violation("OPENED from the sidecar")
		}
		s.markOpened(h.flags&flagCompress != 0)
	}
	return false, nil
}

func (t *Tunnel) onUnknown(h header) error {
	switch {
	case h.stream > t.highest && h.kind == typeReset && !t.client:
		t.highest = h.stream // reset before its OPEN was sent
	case h.stream > t.highest:
		return violation("%v of stream %d, which was not opened", h.kind, h.stream)
	}
	if h.kind == typeReset && h.flags&flagAck == 0 {
		return t.answerReset(h.stream)
	}
	return nil
}

// answerReset lets the peer forget a stream it has reset.
func (t *Tunnel) answerReset(id uint32) error {
	if len(t.sched.resetAcks) >= 4*t.cfg.MaxStreams {
		return violation("more than %d RESETs without taking an answer", 4*t.cfg.MaxStreams)
	}
	t.sched.resetAcks = append(t.sched.resetAcks, id)
	t.wakeLane()
	return nil
}

func (t *Tunnel) onReset(s *Stream, h header, p []byte) error {
	if h.flags&flagAck != 0 {
		if s.resetOut {
			t.forget(s)
		}
		return nil
	}
	f := fields{b: p}
	e := f.failure()
	e.Quota = f.quota()
	if f.err != nil {
		return f.err
	}
	s.fail(e)
	t.forget(s)
	return t.answerReset(s.id)
}

func (s *Stream) onCredit(h header, p []byte) error {
	f := fields{b: p}
	consumed := f.u64()
	if f.err != nil || s.over {
		return f.err
	}
	return s.acknowledge(consumed, h.offset, h.flags&flagFin != 0)
}

// markOpened notes that the backend is connected, and whether the stream may be compressed. Called with mu held.
func (s *Stream) markOpened(compress bool) {
	if s.opened.IsZero() {
		s.opened = time.Now()
		s.t.opening--
		s.mayCompress(compress)
		s.readable.Broadcast()
	}
}

// onAuth takes a renewed token (gateway), or the answer to one (sidecar).
func (t *Tunnel) onAuth(h header, p []byte) error {
	if t.client {
		return t.onAuthAnswer(h, p)
	}
	switch {
	case h.flags&flagAnswer != 0 || len(p) == 0 || len(p) > maxToken:
		return violation("AUTH of %d bytes with flags %#x", len(p), h.flags)
	case t.cfg.Renew == nil:
		t.tctl.answered, t.tctl.answer = true, errs.New(errs.TokenInvalid, "this gateway takes no renewed tokens")
		t.wakeLane()
	case t.tctl.checking:
		t.tctl.nextToken = string(p)
	default:
		t.tctl.checking = true
		t.handlers.Add()
		go t.renew(string(p))
	}
	return nil
}

// renew checks a token, and after it any that came meanwhile.
func (t *Tunnel) renew(token string) {
	defer t.handlers.Done()
	for {
		expires, err := t.checkToken(token)
		t.mu.Lock()
		if token = t.tctl.nextToken; token != "" {
			t.tctl.nextToken = ""
			t.mu.Unlock()
			continue
		}
		t.tctl.checking = false
		t.tctl.answered, t.tctl.answer, t.tctl.expires = true, errs.From(err), expires
		t.wakeLane()
		t.mu.Unlock()
		return
	}
}

// checkToken is Config.Renew, whose fault must not take the process down.
func (t *Tunnel) checkToken(token string) (expires time.Time, err error) {
	defer func() {
		if p := recover(); p != nil {
			t.cfg.Logger.Error("panic while checking a token", "code", errs.Panicked.String(), "panic", p, "stack", string(debug.Stack()))
			err = errs.New(errs.Panicked, "a fault while checking the token")
		}
	}()
	return t.cfg.Renew(token)
}

func (t *Tunnel) onAuthAnswer(h header, p []byte) error {
	if h.flags&flagAnswer == 0 {
		return violation("AUTH without an answer from the gateway")
	}
	f := fields{b: p}
	e := f.failure()
	if f.err != nil {
		return f.err
	}
	if t.cfg.Renewed == nil {
		return nil
	}
	var answer error
	if e.Code != 0 {
		answer = e
	}
	t.unlocked(func() { t.cfg.Renewed(answer) })
	return nil
}

func (t *Tunnel) onGoAway(p []byte) error {
	g, err := parseGoAway(p)
	switch {
	case err != nil:
		return err
	case !t.client:
		return violation("GOAWAY from the sidecar")
	case t.cfg.GoAway != nil:
		t.unlocked(func() { t.cfg.GoAway(g) })
	}
	return nil
}
