package chaos

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"fairlead/shared/logging"
)

// tally counts the codes in a log: where the cuts fell shows in how the attempts failed.
type tally struct {
	mu sync.Mutex
	by map[string]int
}

func newTally() *tally { return &tally{by: map[string]int{}} }

func (t *tally) add(code string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by[code]++
}

func (t *tally) counts() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.by)
}

// handler counts, and hands on to next.
func (t *tally) handler(next slog.Handler) slog.Handler { return counting{next, t} }

type counting struct {
	slog.Handler
	t *tally
}

// Handle counts the code of a record.
func (c counting) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == logging.FieldCode {
			c.t.add(a.Value.String())
		}
		return true
	})
	return c.Handler.Handle(ctx, r)
}

// WithAttrs keeps counting.
func (c counting) WithAttrs(attrs []slog.Attr) slog.Handler {
	return counting{c.Handler.WithAttrs(attrs), c.t}
}

// WithGroup keeps counting.
func (c counting) WithGroup(name string) slog.Handler {
	return counting{c.Handler.WithGroup(name), c.t}
}
