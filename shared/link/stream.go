package link

import (
	"context"
	"io"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// Sink takes what a stream receives, when the stream's owner does not call Read. Calls never overlap, but for Abort, which
// may come while Write blocks. None may call the stream.
type Sink interface {
	io.Writer          // blocks until all is written
	CloseWrite() error // the peer ended its direction and everything is written
	Abort(error)       // the stream was reset or its tunnel ended: unblock Write and drop the destination
}

// TrySink is a Sink that can take bytes without blocking, so that the lane's reader needs no other goroutine to deliver
// them. Its CloseWrite and Abort must not block either.
type TrySink interface {
	Sink
	TryWrite(p []byte) (n int, err error) // writes what the destination takes now; 0, nil when that is nothing
}

// Stream is one connection's image in the tunnel: two directions of bytes, each ended on its own.
type Stream struct {
	t       *Tunnel
	id      uint32
	req     OpenRequest
	started time.Time
	opened  time.Time // when OPENED was sent or came

	// Everything below is guarded by t.mu.
	due      dueBits
	inCtl    bool // in the scheduler's control queue
	inData   bool // in the scheduler's data queue of its priority
	nextCtl  *Stream
	nextData *Stream
	err      *errs.Error             // why the stream was reset, by either side
	resetOut bool                    // this side reset it: RESET is repeated until answered
	over     bool                    // both directions final, or reset
	cancel   context.CancelCauseFunc // of the context that Opening returned

	send    sendState
	recv    recvState
	packing packing

	readable sync.Cond // Read, WaitOpened and Wait
	writable sync.Cond // Write and WaitRoom
}

// ID is the stream's number in its tunnel.
func (s *Stream) ID() uint32 { return s.id }

// Request is what the stream was opened with.
func (s *Stream) Request() OpenRequest { return s.req }

// Tunnel is the tunnel that carries the stream.
func (s *Stream) Tunnel() *Tunnel { return s.t }

// Accept tells the peer that the backend is connected; the gateway's end only.
func (s *Stream) Accept() { s.accept(false) }

// AcceptCompressed is Accept, and lets both sides compress the stream from here on, if the sidecar wishes that and the tunnel
// can.
func (s *Stream) AcceptCompressed() { s.accept(true) }

func (s *Stream) accept(compress bool) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.err == nil && s.opened.IsZero() {
		s.opened = time.Now()
		s.mayCompress(compress)
		s.t.due(s, dueOpened)
	}
}

// mayCompress starts compression, if it is allowed and everybody can and wants it. Called with mu held.
func (s *Stream) mayCompress(allowed bool) {
	if allowed && s.t.packs && s.req.Compression != CompressOff {
		s.packing.start()
	}
}

// Compressed says whether both sides may compress the stream.
func (s *Stream) Compressed() bool {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.packing.on
}

// WaitOpened blocks until the gateway has connected the backend, the stream has failed, or ctx ends.
func (s *Stream) WaitOpened(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		s.readable.Broadcast()
	})
	defer stop()
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	for s.opened.IsZero() && s.err == nil && ctx.Err() == nil {
		s.readable.Wait()
	}
	switch {
	case s.err != nil:
		return s.err
	case s.opened.IsZero():
		return context.Cause(ctx)
	}
	return nil
}

// Opening returns a context for connecting the stream's backend: it ends when the stream does, or when stop is called.
func (s *Stream) Opening(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.over {
		cancel(s.err)
	} else {
		s.cancel = cancel
	}
	return ctx, func() {
		s.t.mu.Lock()
		s.cancel = nil
		s.t.mu.Unlock()
		cancel(nil)
	}
}

// OpenLatency is the time from OPEN to OPENED; 0 when that has not come.
func (s *Stream) OpenLatency() time.Duration {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.opened.IsZero() {
		return 0
	}
	return s.opened.Sub(s.started)
}

// Totals is the number of payload bytes that were accepted for sending and received, so far.
func (s *Stream) Totals() (sent, received uint64) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.send.end, s.recv.next
}

// Reset ends the stream in both directions and tells the peer why. Retained and received bytes are dropped.
func (s *Stream) Reset(err error) {
	e := errs.From(err)
	if e == nil {
		e = errs.New(errs.Canceled, "the stream was reset")
	}
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.reset(e)
}

// reset is Reset with mu held. The stream stays known until the peer has answered.
func (s *Stream) reset(e *errs.Error) {
	if s.over {
		return
	}
	s.fail(e)
	s.resetOut = true
	s.t.due(s, dueReset)
}

// fail ends the stream here without telling the peer. Called with mu held.
func (s *Stream) fail(e *errs.Error) {
	if s.over {
		return
	}
	s.err = e
	s.finish()
	s.send.drop(s)
	s.recv.drop(s)
	if s.cancel != nil {
		s.cancel(e)
	}
	if s.recv.sink == nil {
		return
	}
	if try, ok := s.recv.sink.(TrySink); ok {
		s.abort(try, e)
		return
	}
	s.goDrain(func() { s.recv.sink.Abort(e) })
}

// abort calls Abort of a sink that does not block. Called with mu held, which a panic must not leave locked.
func (s *Stream) abort(try TrySink, e *errs.Error) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p) // the stream is over already: this only logs
		}
	}()
	try.Abort(e)
}

// finish marks the stream as over and wakes whoever waits. Called with mu held.
func (s *Stream) finish() {
	s.over = true
	if s.t.client && s.opened.IsZero() {
		s.t.opening--
	}
	s.due = 0
	s.t.budget.give(int64(s.send.grown + s.recv.grown))
	s.send.grown, s.recv.grown = 0, 0
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// settle forgets the stream when both directions are final and consumed. Called with mu held.
func (s *Stream) settle() {
	if s.over || !s.send.finAcked || !s.recv.finConsumed {
		return
	}
	keep := s.due // the last CREDIT
	s.finish()
	s.due = keep
	s.t.forget(s)
}

// Wait blocks until the stream is over and its sink is left alone, and returns nil when both directions ended normally.
func (s *Stream) Wait() error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	for !s.over || s.recv.busy || s.recv.drains > 0 {
		s.readable.Wait()
	}
	if s.err != nil {
		return s.err
	}
	return nil
}
