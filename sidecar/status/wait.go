package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"fairlead/shared/errs"
)

// Pace is how often a sidecar is asked while something is waited for.
const Pace = 250 * time.Millisecond

// Wait asks until a connection would be carried, and writes to w why it would not whenever that changes. When timeout is
// over (0: never) it returns the last reason; when the sidecar has given up, errs.GaveUp at once.
func (c *Client) Wait(ctx context.Context, w io.Writer, timeout time.Duration) error {
	within := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	tick := time.NewTicker(Pace)
	defer tick.Stop()
	var last error
	for {
		err := c.whyNot(within)
		switch {
		case err == nil, errors.Is(err, errs.GaveUp), ctx.Err() != nil:
			return err
		case within.Err() != nil: // err may be no more than that
			if last == nil {
				last = err
			}
		case last == nil || reason(err) != reason(last):
			last = err
			fmt.Fprintln(w, "waiting:", reason(err))
		}
		select {
		case <-within.Done():
			if ctx.Err() != nil {
				return errs.Wrap(errs.Canceled, context.Cause(ctx), "waiting for the sidecar at %s", c.address)
			}
			return late(last, timeout, c.address)
		case <-tick.C:
		}
	}
}

func reason(err error) string { return Clean(errs.From(err).Error()) }

// late says what was still missing when the time was up.
func late(last error, timeout time.Duration, address string) error {
	if errors.Is(last, errs.Canceled) {
		return errs.New(errs.NoSidecar, "no answer from %s within %s", address, timeout)
	}
	e := errs.From(last)
	code := e.Code
	if code.Info().Exit != errs.ExitFailed { // a token that is refused now may be renewed; what is told is that time is up
		code = errs.NoTunnel
	}
	return errs.New(code, "not ready after %s: %s", timeout, Clean(e.Text()))
}

// whyNot is nil when a connection would be carried, else why not; errs.GaveUp when nothing is tried any more.
func (c *Client) whyNot(ctx context.Context) error {
	err := c.Ready(ctx)
	if err == nil || errors.Is(err, errs.NoSidecar) || errors.Is(err, errs.Canceled) || errors.Is(err, errs.GaveUp) {
		return err
	}
	st, failed := c.Status(ctx)
	switch {
	case failed != nil:
		return err // readiness is for everybody, the status only for this machine
	case st.State == "failed":
		return errs.New(errs.GaveUp, "the sidecar has given up: %s", Clean(clip(st.Why(), 500)))
	case st.NotReady != "":
		return errs.New(errs.CodeOf(err), "%s: %s", Clean(clip(st.State, 50)), Clean(clip(st.NotReady, 500)))
	}
	return err
}

// Why is the best that is known about why no connection would be carried.
func (s *Status) Why() string {
	for i := len(s.Events) - 1; i >= 0 && s.State == "failed"; i-- {
		if e := s.Events[i]; e.Code != "" {
			return e.Code + " " + e.Reason
		}
	}
	if s.NotReady != "" {
		return s.NotReady
	}
	for _, t := range s.Tunnels {
		if t.Error != "" {
			return t.Error
		}
	}
	return s.State
}
