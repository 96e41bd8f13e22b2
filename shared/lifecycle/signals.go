package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Signal is the cause of a context that a signal ended.
type Signal struct{ Number syscall.Signal }

// Error says which signal came.
func (s Signal) Error() string { return "received signal " + s.Number.String() }

// Reason is the signal's reason code for logs, such as "signal_term".
func (s Signal) Reason() string {
	switch s.Number {
	case syscall.SIGTERM:
		return "signal_term"
	case syscall.SIGINT:
		return "signal_int"
	}
	return "signal"
}

// ExitCode is 128 plus the signal's number: what a process returns that the signal ended before its time.
func (s Signal) ExitCode() int { return 128 + int(s.Number) }

// SignalOf returns the signal that ended ctx.
func SignalOf(ctx context.Context) (Signal, bool) {
	var s Signal
	return s, errors.As(context.Cause(ctx), &s)
}

// SignalConfig says how signals are answered.
type SignalConfig struct {
	Log *slog.Logger // required
	// Reload runs on SIGHUP, in a goroutine of its own so that a slow reload delays no stop. Signals that come while
	// it runs make it run once more. Its context ends when the process stops. nil: SIGHUP is ignored.
	Reload func(context.Context)
	Exit   func(code int) // ends the process at the second SIGTERM or SIGINT; nil is os.Exit
	// Source gives the signals instead of the operating system; the handler never closes it.
	Source <-chan os.Signal
}

type signals struct {
	c      SignalConfig
	cancel context.CancelCauseFunc
	done   chan struct{}
	reload chan struct{}
}

// HandleSignals returns a context that the first SIGTERM or SIGINT ends, with a Signal as its cause; the second one ends
// the process at once with 128 plus its number. The returned function gives the signals back to the operating system,
// ends the context, and waits for a reload in progress.
func HandleSignals(parent context.Context, c SignalConfig) (context.Context, func(), error) {
	if c.Log == nil {
		return nil, nil, errs.New(errs.Internal, "lifecycle: signal handling needs a logger")
	}
	if c.Exit == nil {
		c.Exit = os.Exit
	}
	release := func() {}
	if c.Source == nil {
		ch := make(chan os.Signal, 4) // two to stop, one to reload, one spare: Notify drops what does not fit
		signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		c.Source, release = ch, func() { signal.Stop(ch) }
	}
	ctx, cancel := context.WithCancelCause(parent)
	s := &signals{c: c, cancel: cancel, done: make(chan struct{}), reload: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	wg.Go(s.listen)
	wg.Go(func() { s.reloads(ctx) })
	var once sync.Once
	stop := func() {
		once.Do(func() {
			release()
			cancel(nil)
			close(s.done)
			wg.Wait()
		})
	}
	return ctx, stop, nil
}

// listen goes on after the first signal, or the second could not end the process.
func (s *signals) listen() {
	stopping := false
	for {
		select {
		case <-s.done:
			return
		case received := <-s.c.Source:
			number, ok := received.(syscall.Signal)
			switch {
			case !ok:
			case number == syscall.SIGHUP:
				s.askReload()
			case number == syscall.SIGTERM || number == syscall.SIGINT:
				s.end(Signal{number}, stopping)
				stopping = true
			}
		}
	}
}

func (s *signals) end(sig Signal, again bool) {
	if !again {
		s.c.Log.Info("stopping", logging.FieldReason, sig.Reason())
		s.cancel(sig)
		return
	}
	s.c.Log.Warn("ending at once: second signal", logging.FieldReason, sig.Reason())
	s.c.Exit(sig.ExitCode())
}

func (s *signals) askReload() {
	select {
	case s.reload <- struct{}{}:
	default: // one more run is already due, and it will see what this signal is about
	}
}

func (s *signals) reloads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.reload:
			if s.c.Reload == nil {
				continue
			}
			_ = Guard(s.c.Log, "reload", func() error { s.c.Reload(ctx); return nil }) // a panic is logged by Guard
		}
	}
}
