// Package chaos carries transfers through a sidecar and a gateway while it cuts the network between them again and again,
// and verifies afterwards that nothing was lost: no byte, no connection, no goroutine, no memory.
//
// Both programs run in this process, built by the same code as their commands, over TLS and the fault proxy of the test
// bed. Applications and the backend are plain TCP on either side.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config says how much is transferred and how often the network is cut.
type Config struct {
	Cuts    int    // cuts of the network in all
	Bytes   int64  // content in each direction, at least
	Streams int    // connections at a time
	Seed    uint64 // what is cut when, and what is sent; the same seed repeats the plan, not the timing

	Heartbeat time.Duration // of both programs: how soon silence is noticed; 0: 1 s, the least that is configurable
	Patience  time.Duration // without a byte moving, after which the run has failed; 0: 30 s
	Dir       string        // for keys; must exist
	Log       io.Writer     // takes the log of both programs, JSON; nil: nobody

	// Progress is told about every cut, from one goroutine; nil: nobody.
	Progress func(Progress)
}

// Progress is how far a run has come.
type Progress struct {
	Cuts     int
	Up, Down int64 // bytes that arrived
	Kind     Kind  // of the last cut
}

const (
	defaultHeartbeat = time.Second
	defaultPatience  = 30 * time.Second

	// mostFailures ends a run: what follows says nothing new.
	mostFailures = 10
)

func (c Config) withDefaults() Config {
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Patience == 0 {
		c.Patience = defaultPatience
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
	return c
}

func (c Config) check() error {
	if c.Cuts < 1 || c.Streams < 1 || c.Bytes < int64(c.Streams) {
		return fmt.Errorf("%d cuts, %d streams and %d bytes: at least one of each, and a byte for each stream", c.Cuts, c.Streams, c.Bytes)
	}
	return nil
}

// Run transfers and cuts until both counts are reached, stops everything, and reports. The error is nil when the run took
// place; whether everything was kept is in the result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	before := takeBaseline()
	s, err := newSite(cfg)
	if err != nil {
		return nil, err
	}
	r := newResult(cfg)
	err = s.run(ctx, cfg, r)
	s.note(r)
	r.keep(s.close())
	if err != nil {
		return nil, err
	}
	before.compare(r)
	return r, nil
}

// run does the transfers with the cuts in them, and looks at both programs once all is quiet.
func (s *site) run(ctx context.Context, cfg Config, r *Result) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	start := time.Now()
	running, give := context.WithCancelCause(ctx)
	defer give(nil)
	t := newTraffic(cfg, s, r, func() { give(errTooMany) })
	sab := newSaboteur(cfg, s, t)
	group, running := errgroup.WithContext(running)
	for i := range cfg.Streams {
		group.Go(func() error { return t.work(running, i) })
	}
	group.Go(func() error { return sab.work(running) })
	err := group.Wait()
	r.Seconds = time.Since(start).Seconds()
	s.proxy.Resume() // a run that failed may have left the network cut
	sab.note(r)
	t.note(r)
	switch {
	case errors.Is(err, errTooMany), errors.Is(err, errStuck):
		r.fail("%v", err)
		return nil
	case err != nil:
		return err
	}
	s.settle(ctx, r)
	return nil
}

var (
	errTooMany = errors.New("too many failures, the run was ended")
	errStuck   = errors.New("nothing moves any more")
)
