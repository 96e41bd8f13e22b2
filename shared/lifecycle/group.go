package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Guard runs f and turns a panic in it into an errs.Panicked error. The panic's value and stack go to the log, once, here;
// the error names only what panicked, since a panic's value may hold anything.
func Guard(log *slog.Logger, name string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errs.New(errs.Panicked, "%s panicked", name)
			log.Error("panic", append(logging.Error(err), logging.FieldStep, name,
				"panic", fmt.Sprint(v), logging.FieldStack, string(debug.Stack()))...)
		}
	}()
	return f()
}

// Group is a set of goroutines that end together: the first error cancels the context of all.
type Group struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu  sync.Mutex
	err error // guarded by mu; the first failure
}

// NewGroup makes a group, and the context that its goroutines get: it ends with parent, with the first failure (which is
// its cause), and when Wait returns.
func NewGroup(parent context.Context, log *slog.Logger) (*Group, context.Context) {
	ctx, cancel := context.WithCancelCause(parent)
	return &Group{log: log, ctx: ctx, cancel: cancel}, ctx
}

// Go runs f. An error or panic of f, named, becomes the group's result if it is the first; a return of nil leaves the
// others running. That f returns the context's error once the context has ended is no failure.
func (g *Group) Go(name string, f func(context.Context) error) {
	g.wg.Go(func() {
		err := Guard(g.log, name, func() error { return f(g.ctx) })
		if err == nil || g.echo(err) {
			return
		}
		g.fail(fmt.Errorf("%s: %w", name, err))
	})
}

// echo reports whether err only says that the group's context has ended.
func (g *Group) echo(err error) bool {
	if g.ctx.Err() == nil {
		return false
	}
	cause := context.Cause(g.ctx)
	return errors.Is(err, g.ctx.Err()) || errors.Is(err, errs.Canceled) || errors.Is(err, cause)
}

func (g *Group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		g.cancel(err)
	}
}

// Wait returns when all goroutines have returned, with the first failure or nil. Call it once, after the last Go.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.cancel(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
