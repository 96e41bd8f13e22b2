package listener

import (
	"context"
	"errors"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// StopAccepting frees the address at once. Connections that were accepted go on; those that were not yet are refused by the
// kernel. It returns when no connection comes any more.
func (l *Listener) StopAccepting() {
	if l.end() {
		l.sock.Close()
	}
	l.awaitServe()
}

// end tells Serve to end, and says whether it was the first to do so: then the socket is the caller's.
func (l *Listener) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped() {
		return false
	}
	close(l.stop)
	return true
}

func (l *Listener) awaitServe() {
	l.mu.Lock()
	serving := l.serving
	l.mu.Unlock()
	if serving != nil {
		<-serving
	}
}

// HandOver makes a Listener with another configuration for the same address, whatever cfg.Listen says, which gets the socket:
// not one connection is refused for it. This one accepts no more; what it has accepted goes on as it was until Close. It
// fails when this one has stopped accepting.
func (l *Listener) HandOver(cfg Config) (*Listener, error) {
	if !l.end() {
		return nil, errs.New(errs.ListenFailed, "listener %s does not listen any more", l.cfg.Name)
	}
	l.sock.interrupt(true)
	l.awaitServe()
	l.sock.interrupt(false)
	cfg.Listen = l.cfg.Listen
	return newOn(l.sock, cfg), nil
}

// Drain is Drain of this listener alone.
func (l *Listener) Drain(ctx context.Context, quiet time.Duration) error {
	return Drain(ctx, quiet, l)
}

// Drain goes on accepting and serving until, for as long as quiet, none of the listeners has had a connection, counted from
// now at the earliest: applications that end may have something left to say. Then, or when ctx ends, they stop accepting;
// what is left when ctx ends is cut, as by Close.
func Drain(ctx context.Context, quiet time.Duration, listeners ...*Listener) error {
	awaitQuiet(ctx, quiet, listeners)
	var all sync.WaitGroup
	failures := make([]error, len(listeners))
	for i, l := range listeners {
		all.Go(func() { failures[i] = l.Close(ctx) })
	}
	all.Wait()
	return errors.Join(failures...)
}

func awaitQuiet(ctx context.Context, quiet time.Duration, listeners []*Listener) {
	begin := time.Now()
	for ctx.Err() == nil {
		since, busy := quietSince(begin, listeners)
		var over <-chan time.Time
		if busy == nil {
			wait := quiet - time.Since(since)
			if wait <= 0 {
				return
			}
			over = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-busy:
		case <-over:
		}
	}
}

// quietSince is the time of the last end of a connection, or begin if that is later. busy is closed when that of a listener
// which has connections changes; nil when none has.
func quietSince(begin time.Time, listeners []*Listener) (since time.Time, busy <-chan struct{}) {
	since = begin
	for _, l := range listeners {
		quiet, turned := l.quietness()
		if quiet.IsZero() {
			return since, turned
		}
		if quiet.After(since) {
			since = quiet
		}
	}
	return since, nil
}

func (l *Listener) quietness() (since time.Time, turned <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.quiet, l.turned
}

// Close stops accepting and waits for connections until ctx ends; then it cuts what is left, and the error says how much
// that was.
func (l *Listener) Close(ctx context.Context) error {
	l.StopAccepting()
	var err error
	for {
		quiet, turned := l.quietness()
		if !quiet.IsZero() {
			break
		}
		select {
		case <-turned:
			continue
		case <-ctx.Done():
		}
		n := l.cut(errs.New(errs.ShuttingDown, "the sidecar ends the connection: %v", context.Cause(ctx)))
		if n > 0 {
			err = errs.Wrap(errs.Canceled, context.Cause(ctx), "%d connections of listener %s were cut", n, l.cfg.Name)
		}
		break
	}
	l.cancel(errs.New(errs.ShuttingDown, "the listener is closed"))
	l.wg.Wait()
	return err
}

// cut ends every connection, and returns how many there were. The gateway and the application are told that it was no orderly
// end.
func (l *Listener) cut(why error) int {
	l.mu.Lock()
	l.cutBy = why
	cut := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		cut = append(cut, c)
	}
	l.count.cut.Add(len(cut))
	l.mu.Unlock()
	l.cancel(why)
	for _, c := range cut {
		l.mu.Lock()
		s := c.stream
		l.mu.Unlock()
		if s != nil {
			s.Reset(why)
		} else {
			c.reset()
		}
	}
	return len(cut)
}

func (l *Listener) cutReason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cutBy
}
