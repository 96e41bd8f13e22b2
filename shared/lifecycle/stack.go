// Package lifecycle starts and stops the parts of a program: a stack of named stop functions that runs in reverse order, a
// group of goroutines that end together, and the signals that a process answers.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Reason codes of a stop step's log line.
const (
	ReasonStopped  = "stopped"  // the step did its work
	ReasonFailed   = "failed"   // the step returned an error
	ReasonPanicked = "panicked" // the step panicked
	ReasonTimeout  = "timeout"  // the step was still running when its time was over, and was left behind
)

// unwindTime bounds the stop of what a failed construction leaves behind: nothing of it has served anybody yet.
const unwindTime = 5 * time.Second

// StackConfig says how a Stack is made.
type StackConfig struct {
	Log *slog.Logger // required
	// Grace is how long a step may still run when the context of Stop has ended before or during it; 0 is 1 s. Every step
	// is called, even then, since most only close a socket.
	Grace time.Duration
}

// Stack holds the stop functions of what has been built. They run in reverse order, each once. Safe for concurrent use.
type Stack struct {
	log   *slog.Logger
	grace time.Duration

	mu      sync.Mutex
	steps   []step        // guarded by mu
	stopped chan struct{} // guarded by mu; nil until Stop is called, closed when it is done
	err     error         // written before stopped is closed
}

type step struct {
	name string
	stop func(context.Context) error
}

// NewStack makes an empty stack.
func NewStack(c StackConfig) (*Stack, error) {
	if c.Log == nil {
		return nil, errs.New(errs.Internal, "lifecycle: a stack needs a logger")
	}
	if c.Grace == 0 {
		c.Grace = time.Second
	}
	return &Stack{log: c.Log, grace: c.Grace}, nil
}

// Push registers how to stop what was just built. The name appears in logs and errors. On a stack that is stopping already, stop
// runs at once, so that nothing built late stays behind.
func (s *Stack) Push(name string, stop func(context.Context) error) {
	s.mu.Lock()
	late := s.stopped != nil
	if !late {
		s.steps = append(s.steps, step{name, stop})
	}
	s.mu.Unlock()
	if !late {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), unwindTime)
	defer cancel()
	_ = s.run(ctx, step{name, stop}) // logged by run; Stop's caller has its answer already
}

// Stop runs the steps in reverse order and joins their errors, each with the name of its step. A step that is still
// running when ctx ends is waited for no longer than the grace and then left behind, as an error with errs.Internal
// about the step; the following ones run all the same. Further calls wait for the first and return its result.
func (s *Stack) Stop(ctx context.Context) error {
	s.mu.Lock()
	if done := s.stopped; done != nil {
		s.mu.Unlock()
		<-done
		return s.err
	}
	done := make(chan struct{})
	s.stopped = done
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	defer close(done)
	var failed []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := s.run(ctx, steps[i]); err != nil {
			failed = append(failed, err)
		}
	}
	s.err = errors.Join(failed...)
	return s.err
}

// Unwind stops what was built when construction fails half-way, and joins the errors of that to *err. It is meant to be
// deferred where the stack is made:
//
//	func New(c Config) (_ *App, err error) {
//		stack, err := lifecycle.NewStack(…)
//		defer func() { stack.Unwind(&err) }()
func (s *Stack) Unwind(err *error) {
	if *err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), unwindTime)
	defer cancel()
	if stopErr := s.Stop(ctx); stopErr != nil {
		*err = errors.Join(*err, stopErr)
	}
}

// run calls one step, in a goroutine of its own because a step that ignores its context must not hold up the others.
func (s *Stack) run(ctx context.Context, st step) error {
	begin := time.Now()
	result := make(chan error, 1)
	go func() { result <- Guard(s.log, st.name, func() error { return st.stop(ctx) }) }()
	reason, err := s.await(ctx, result)
	attrs := []any{logging.FieldStep, st.name, logging.FieldReason, reason, "duration_ms", time.Since(begin).Milliseconds()}
	if err == nil {
		s.log.Info("step of the shutdown", attrs...)
		return nil
	}
	s.log.Warn("step of the shutdown", append(attrs, logging.FieldError, err.Error())...)
	return fmt.Errorf("stopping %s: %w", st.name, err)
}

func (s *Stack) await(ctx context.Context, result <-chan error) (reason string, err error) {
	select {
	case err := <-result:
		return reasonOf(err), err
	case <-ctx.Done():
	}
	grace := time.NewTimer(s.grace)
	defer grace.Stop()
	select {
	case err := <-result:
		return reasonOf(err), err
	case <-grace.C:
		return ReasonTimeout, errs.Wrap(errs.Internal, context.Cause(ctx), "did not stop in time")
	}
}

func reasonOf(err error) string {
	switch {
	case err == nil:
		return ReasonStopped
	case errors.Is(err, errs.Panicked):
		return ReasonPanicked
	}
	return ReasonFailed
}
