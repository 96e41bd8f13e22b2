package app

import (
	"context"
	"errors"
	"os"
	"sync"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/sidecar/config"
)

// Connect carries in and out over one stream to route, with resume, and returns when the stream is over. It uses the
// gateway's part of the configuration; listeners and the admin API stay closed.
func Connect(ctx context.Context, cfg config.Config, opts Options, route string, in, out *os.File) error {
	cfg.Listeners, cfg.Admin.Listen = nil, ""
	cfg.Tunnels.Min, cfg.Tunnels.Max = 1, 1
	a, err := New(cfg, opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	err = a.carry(ctx, route, in, out)
	cancel()
	if runErr := <-ran; err == nil {
		err = runErr
	}
	return err
}

func (a *App) carry(ctx context.Context, route string, in, out *os.File) error {
	s, err := a.openOrRefused(ctx, link.OpenRequest{Route: route, Priority: link.High, Peer: "stdio", Trace: link.NewTrace()})
	if err != nil {
		return a.whyNot(err)
	}
	// A read of standard input cannot be interrupted, so when the stream is over the pump is left behind: the process ends.
	go func() { _ = relay.Pump(s, &stdio{in: in, out: out}) }() // Wait tells how the stream ended
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		s.Reset(errs.Wrap(errs.Canceled, context.Cause(ctx), "connect was stopped"))
		return <-ended
	}
}

// openOrRefused opens a stream, waiting for a tunnel if need be. A refused token ends the wait at once: whoever waits at a
// terminal can do better than to wait for attempts that will be refused too.
func (a *App) openOrRefused(ctx context.Context, req link.OpenRequest) (*link.Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			changed := a.Changed()
			if refusal := refusalOf(a.pool.LastError()); refusal != nil {
				cancel(refusal)
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	})
	defer watch.Wait()
	defer cancel(nil)
	return a.open(ctx, req)
}

// whyNot prefers the reason why there is no tunnel over the fact that there is none, or that attempts were given up.
func (a *App) whyNot(err error) error {
	if refusal := refusalOf(err); refusal != nil {
		return refusal
	}
	if last := a.pool.LastError(); last != nil && errs.CodeOf(err) == errs.NoTunnel {
		return last
	}
	return err
}

// refusalOf returns the error of authentication that err is or was caused by; nil if there is none.
func refusalOf(err error) error {
	for ; err != nil; err = errors.Unwrap(err) {
		if e, ok := err.(*errs.Error); ok && e.Category() == errs.Authentication {
			return e
		}
	}
	return nil
}

// stdio is standard input and output as a connection.
type stdio struct {
	in, out *os.File
	once    sync.Once
}

func (s *stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *stdio) CloseWrite() error           { return s.closeOut() }
func (s *stdio) Close() error                { return s.closeOut() }

func (s *stdio) closeOut() (err error) {
	s.once.Do(func() { err = s.out.Close() })
	return err
}
