package spool

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
)

// batchesMost bounds the memory of all connections that are being received: one that is idle needs none.
const batchesMost = 16

// Receipt says what became of a connection.
type Receipt struct {
	ID    ID     // 0: it brought no bytes, so that there is nothing to deliver
	Bytes uint64 // that are kept
}

// Accept takes the bytes of c, keeps them, and closes c: in order when it was ended in order and everything is durable, else
// with a reset. It returns when that is done. The end of ctx cuts the connection; what came until then is kept and delivered.
// An error says why it was cut or refused. With FsyncInterval an end is acknowledged only while Run runs.
// took is told how many bytes were kept, each time; it may be nil.
func (s *Spool) Accept(ctx context.Context, c net.Conn, from Origin, took func(n int)) (Receipt, error) {
	src, err := newSource(c)
	if err != nil {
		c.Close()
		return Receipt{}, err
	}
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	e, err := s.admit(from.clip(), cut)
	if err != nil {
		s.count.refused.Inc()
		src.reset()
		return Receipt{}, err
	}
	defer s.received.Done()
	stop := context.AfterFunc(ctx, src.interrupt)
	defer stop()
	if took == nil {
		took = func(int) {}
	}
	w := &writer{s: s, e: e, took: took}
	err = lifecycle.Guard(s.log, "receiving", func() error { return s.receive(ctx, w, src) })
	if err == nil {
		err = src.end()
	} else {
		src.reset()
	}
	s.left(e, w, err)
	r := Receipt{Bytes: w.end}
	if w.end > 0 {
		r.ID = e.id
	}
	return r, err
}

// admit makes an entry, unless the spool is full. It is listed when it has its first bytes.
func (s *Spool) admit(from Origin, cut context.CancelCauseFunc) (*entry, error) {
	for {
		s.mu.Lock()
		if err := s.full(from.Priority); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		if s.total() < s.cfg.Connections {
			break
		}
		victim := s.victim(&entry{from: from})
		s.mu.Unlock()
		s.dropFull(victim)
	}
	defer s.mu.Unlock()
	now := time.Now()
	e := &entry{id: s.newID(now), from: from, at: now, turn: now, live: true, ours: true, known: true, cut: cut}
	s.enlist(e)
	s.live++
	s.received.Add(1)
	return e, nil
}

// receive keeps everything until the end of c, and the end. Its error is why it could not.
func (s *Spool) receive(ctx context.Context, w *writer, src *source) error {
	for {
		err := src.wait()
		if err == nil {
			err = s.step(ctx, w, src)
		}
		if err == io.EOF {
			if err = s.complete(ctx, w); err == nil {
				return nil
			}
		}
		if err != nil {
			return cutShort(ctx, w, err)
		}
	}
}

// room waits until there is both space and memory to read with, and holds neither while it waits for the other. The memory
// is the caller's until it is put back.
func (s *Spool) room(ctx context.Context, e *entry) (b *batch, granted int64, err error) {
	for {
		select {
		case b = <-s.batches:
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
		if granted = s.reserve(e, int64(batchSize)); granted > 0 {
			if b == nil {
				b = newBatch()
			}
			return b, granted, nil
		}
		s.batches <- b
		if err := s.makeRoom(ctx, e); err != nil {
			return nil, 0, err
		}
	}
}

func (s *Spool) put(b *batch) {
	b.n = 0
	s.batches <- b
}

// step keeps what can be read now. io.EOF is the application's end.
func (s *Spool) step(ctx context.Context, w *writer, src *source) error {
	b, granted, err := s.room(ctx, w.e)
	if err != nil {
		return err
	}
	defer s.put(b)
	defer s.settle(granted)
	readErr := w.fill(b, src, int(granted)-headRoom)
	if b.n > 0 {
		before := w.end
		if err := w.flush(ctx, b); err != nil {
			return err
		}
		w.took(int(w.end - before))
		src.consume()
	}
	return readErr
}

// complete keeps the end, and waits until everything is as durable as the policy says. A connection without bytes leaves
// nothing to deliver, and no trace.
func (s *Spool) complete(ctx context.Context, w *writer) error {
	if w.end == 0 {
		return nil
	}
	var b *batch
	select {
	case b = <-s.batches:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if b == nil {
		b = newBatch()
	}
	err := w.finish(ctx, b)
	s.put(b)
	if err == nil && s.cfg.Fsync == FsyncInterval {
		err = s.awaitSync(ctx, w.e)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.e.clean = true
	return nil
}

// cutShort is the error of a connection that was cut. Nothing is written: that it has no end says it.
func cutShort(ctx context.Context, w *writer, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause // what the interrupted read says is of no interest
	}
	var coded *errs.Error
	if !errors.As(err, &coded) {
		if ctx.Err() != nil {
			return errs.Wrap(errs.Canceled, err, "the connection was cut; %d bytes are kept", w.end)
		}
		return errs.Wrap(errs.ConnectionBroken, err, "reading from the application; %d bytes are kept", w.end)
	}
	return err
}

// left says that an application's connection has ended, one way or the other.
func (s *Spool) left(e *entry, w *writer, err error) {
	if w.f != nil && s.cfg.Fsync == FsyncInterval && !e.clean {
		_ = w.sync() // the pass of the interval may come too late for its file; nobody was promised anything
	}
	w.shut()
	s.mu.Lock()
	s.live--
	e.live, e.cut = false, nil
	delete(s.dirty, e)
	if e.state == gone {
		s.mu.Unlock()
		return
	}
	if w.end == 0 {
		e.state = gone
		s.unlist(e)
		s.changed()
		s.mu.Unlock()
		return
	}
	if s.closed {
		s.mu.Unlock()
		return
	}
	if e.state == idle {
		e.state = ready
	}
	s.changed()
	s.mu.Unlock()
	s.wakeUp()
	if err != nil {
		s.log.Debug("spooled connection was cut", append(e.attrs(), logging.Error(err)...)...)
	}
}
