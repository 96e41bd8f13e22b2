// Package cluster runs several gateways that work as one, with a Redis, a load balancer and sidecars, each a process of its
// own, and shows what happens to connections while replicas are ended, killed, frozen and parted from each other.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options say how a scenario is run.
type Options struct {
	Dir   string // for keys, configurations and logs; must exist
	Bin   string // directory of both programs; empty: they are built
	Short bool   // sizes for tests: every path is taken, and what depends on the machine's speed is reported, not judged
	Seed  uint64 // of what is done when; the same seed repeats the plan, not the timing

	// Note takes a line about what happens; nil: nobody.
	Note func(format string, args ...any)
}

// Scenario is something that happens to several replicas, with the criteria that must hold meanwhile.
type Scenario struct {
	Name string
	What string // in a line
	run  func(ctx context.Context, o Options, r *Result) error
}

// Scenarios lists all.
func Scenarios() []Scenario {
	return []Scenario{
		{"roll", "rolling restart under connections with transfers, through the balancer", roll},
		{"cuts", "cuts of the sidecar's connections, which come back to any replica", cuts},
		{"storm", "a replica is killed, and all of its tunnels come back to the others", storm},
		{"limits", "a tenant attacks all replicas at once, with Redis and without", limits},
		{"redis", "Redis is absent, frozen, killed, full, read-only, and fails over", trouble},
		{"partition", "replicas are parted from each other and from Redis", partition},
		{"restart", "a replica is killed and started again under its name", restart},
	}
}

// Find returns a scenario by its name.
func Find(name string) (Scenario, bool) {
	for _, s := range Scenarios() {
		if s.Name == name {
			return s, true
		}
	}
	return Scenario{}, false
}

// Run runs the scenario. The error is nil when it took place; whether its criteria were met is in the result.
func (s Scenario) Run(ctx context.Context, o Options) (*Result, error) {
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	r := &Result{Scenario: s.Name, Short: o.Short, Seed: o.Seed, Figures: []Figure{}, Failures: []string{}}
	began := time.Now()
	err := s.run(ctx, o, r)
	r.Seconds = time.Since(began).Seconds()
	if errors.Is(err, errStopped) {
		err = nil // the failures say why
	}
	return r, err
}

// errStopped ends a scenario whose failures are noted.
var errStopped = errors.New("the scenario was ended by a failure")

// pick is long, or short in a test.
func pick[T any](o Options, long, short T) T {
	if o.Short {
		return short
	}
	return long
}

// on runs f on a site of its own, in a directory of its own below the run's.
func on(ctx context.Context, o Options, r *Result, name string, cfg Config, f func(s *Site) error) (err error) {
	return onPrepared(ctx, o, r, name, cfg, func(s *Site) error {
		if err := s.StartReplicas(ctx); err != nil {
			return err
		}
		if err := s.StartSidecars(ctx); err != nil {
			return err
		}
		return f(s)
	})
}

// onPrepared is on with a site whose gateways and sidecars f starts.
func onPrepared(ctx context.Context, o Options, r *Result, name string, cfg Config, f func(s *Site) error) (err error) {
	cfg.Dir, cfg.Bin, cfg.Seed, cfg.Patient = filepath.Join(o.Dir, name), o.Bin, o.Seed, o.Short
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	s, err := Prepare(ctx, cfg)
	if err != nil {
		return err
	}
	err = f(s)
	if ctx.Err() == nil {
		r.keep(s.Err())
	}
	closed := s.Close()
	for _, file := range s.Races() {
		r.fail("a data race, see %s", file)
	}
	return errors.Join(err, closed)
}

// tell is a Note for w.
func tell(w io.Writer, scenario string) func(string, ...any) {
	began := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "%s %6.1fs  %s\n", scenario, time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
}
