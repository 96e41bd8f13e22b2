package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"fairlead/shared/errs"
)

// silence is how long a sidecar that stops may leave questions unanswered, without being gone, before that is an error.
const silence = 30 * time.Second

// Follow writes the progress of a stop to w, a line whenever it changes, until the sidecar has ended: until nothing
// listens at its address any more, or another process does. describe makes the line.
func (c *Client) Follow(ctx context.Context, w io.Writer, describe func(*Status, time.Time) string) error {
	tick := time.NewTicker(Pace)
	defer tick.Stop()
	var started, heard time.Time
	heard = time.Now()
	for last := ""; ; {
		st, err := c.Status(ctx)
		now := time.Now()
		switch {
		case err == nil && !started.IsZero() && !st.Started.Equal(started), errors.Is(err, syscall.ECONNREFUSED):
			fmt.Fprintln(w, "ended")
			return nil
		case err == nil:
			started, heard = st.Started, now
			if line := describe(st, now); line != last {
				last = line
				fmt.Fprintln(w, line)
			}
		case ctx.Err() != nil || now.Sub(heard) > silence:
			return err
		}
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Canceled, context.Cause(ctx), "following the sidecar at %s", c.address)
		case <-tick.C:
		}
	}
}
