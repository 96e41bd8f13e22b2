package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	mostElsewhere = 2               // times that a resume on another replica may take, of one on the owner
	mostRecovery  = 5 * time.Second // R1.8, at the 95th percentile
)

// cuts resets the sidecar's connections again and again. Each comes back through whichever replica the balancer picks.
func cuts(ctx context.Context, o Options, r *Result) error {
	return on(ctx, o, r, "cuts", Config{Sidecars: 1}, func(s *Site) error {
		times, content := pick(o, 1000, 100), pick[int64](o, 1<<30, 64<<20)
		before, err := ids(ctx, s.Sidecars[0])
		if err != nil {
			return err
		}
		t := newTraffic(ctx, r, o.Seed)
		defer t.abandon()
		for n := range 8 {
			t.worker(n, sized(pick[int64](o, 32<<20, 4<<20)), s.through(RouteEcho), 0)
		}
		recoveries, err := cutAgain(ctx, o, s, t, times, content)
		if err != nil {
			return r.stop("%v", err)
		}
		t.finish()
		after, err := ids(ctx, s.Sidecars[0])
		if err != nil {
			return err
		}
		r.least("cuts", float64(len(recoveries)), float64(times), "")
		r.least("content, each way", float64(t.moved.Load())/(1<<20), float64(content)/(1<<20), "MiB")
		r.least("connections, every hash equal", float64(t.done.Load()), 1, "")
		r.most("lost", float64(t.lost.Load()), 0, "")
		r.figure("recovery, p50", milliseconds(quantile(recoveries, .5)), "ms")
		r.most("recovery, p95", milliseconds(quantile(recoveries, .95)), milliseconds(mostRecovery), "ms")
		if !slices.Equal(before, after) {
			r.fail("the tunnels are %v, at the beginning they were %v", after, before)
		}
		if err := resumeKinds(ctx, s, r); err != nil {
			return err
		}
		return resumeTimes(ctx, o, s, r)
	})
}

// cutAgain cuts whenever some bytes have moved, and measures how long it is until bytes move again.
func cutAgain(ctx context.Context, o Options, s *Site, t *traffic, times int, content int64) (recoveries []time.Duration, err error) {
	rng := rand.New(rand.NewPCG(o.Seed, 1<<32))
	gap := max(2*content/int64(times), 1)
	told := time.Now()
	for len(recoveries) < times || t.moved.Load() < content {
		if len(recoveries) < times {
			if err := t.moves(ctx, 1+rng.Int64N(gap)); err != nil {
				return recoveries, fmt.Errorf("after %d cuts: %w", len(recoveries), err)
			}
			s.Balancer.Cut()
		}
		from := time.Now()
		if err := t.moves(ctx, 1); err != nil {
			return recoveries, fmt.Errorf("after %d cuts: %w", len(recoveries), err)
		}
		if len(recoveries) < times {
			recoveries = append(recoveries, time.Since(from))
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			o.Note("%d cuts, %d MiB each way, %d connections", len(recoveries), t.moved.Load()>>20, t.done.Load())
		}
		if err := s.Err(); err != nil {
			return recoveries, err
		}
	}
	return recoveries, nil
}

// moves waits until n more bytes have come back.
func (t *traffic) moves(ctx context.Context, n int64) error {
	from, last, since := t.moved.Load(), int64(0), time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		now := t.moved.Load()
		if now-from >= n {
			return nil
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > stuck {
			return fmt.Errorf("no byte has moved for %v", stuck)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.open.Done():
			return errStopped
		case <-tick.C:
		}
	}
}

// ids lists the sidecar's tunnels.
func ids(ctx context.Context, one *Sidecar) (list []string, err error) {
	st, err := one.Status(ctx)
	for _, t := range st.Tunnels {
		list = append(list, t.ID)
	}
	return list, err
}

// resumeKinds reads from the gateways where tunnels came back to.
func resumeKinds(ctx context.Context, s *Site, r *Result) error {
	for _, kind := range []string{"same", "relayed"} {
		n, err := s.Sum(ctx, "fairlead_gateway_resumes_total", fmt.Sprintf("kind=%q", kind))
		if err != nil {
			return err
		}
		r.least("resumes, "+kind, n, 1, "")
	}
	n, err := s.Sum(ctx, "fairlead_gateway_lease_losses_total")
	r.most("leases lost", n, 0, "")
	return err
}

// Sum adds a metric over the gateways that run.
func (s *Site) Sum(ctx context.Context, name string, labels ...string) (sum float64, err error) {
	for _, one := range s.Replicas {
		if !one.running() {
			continue
		}
		m, err := one.Metrics(ctx)
		if err != nil {
			return 0, err
		}
		n, _ := m.Sum(name, labels...)
		sum += n
	}
	return sum, nil
}

// resumeTimes compares resumes on the owner with those elsewhere: of one tunnel, in turn, from the dial to the first byte
// that comes back over a stream that was open before.
func resumeTimes(ctx context.Context, o Options, s *Site, r *Result) error {
	c, err := s.Client(Tenant)
	if err != nil {
		return err
	}
	owner, other := s.Replicas[0].Address(), s.Replicas[1].Address()
	t, err := c.Connect(ctx, owner)
	if err != nil {
		return err
	}
	defer t.End()
	word, err := t.Talk(RouteEcho)
	if err != nil {
		return err
	}
	var same, elsewhere []time.Duration
	for n := range pick(o, 400, 60) {
		addr, list := owner, &same
		if n%2 == 1 {
			addr, list = other, &elsewhere
		}
		began := time.Now()
		if err := t.Resume(ctx, addr); err != nil {
			return r.stop("resume %d: %v", n, err)
		}
		if err := word.Say(); err != nil {
			return r.stop("after resume %d: %v", n, err)
		}
		*list = append(*list, time.Since(began))
	}
	on, at := quantile(same, .5), quantile(elsewhere, .5)
	r.figure("resume on the owner, p50", milliseconds(on), "ms")
	r.figure("resume elsewhere, p50", milliseconds(at), "ms")
	if ratio := float64(at) / float64(on); o.Short {
		r.figure("ratio", ratio, "")
	} else {
		r.most("ratio", ratio, mostElsewhere, "")
	}
	return nil
}
