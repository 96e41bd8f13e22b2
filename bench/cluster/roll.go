package cluster

import (
	"context"
	"time"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed/balancer"
)

// mostLatency is how many times longer opens may take during a rolling restart, at the 99th percentile.
const mostLatency = 5

// roll restarts one replica after the other, in order, under connections that each end within half of the drain time or less, and
// while new ones are made all the time.
func roll(ctx context.Context, o Options, r *Result) error {
	drain, longest := 10*time.Second, pick(o, 5*time.Second, time.Second)
	cfg := Config{Sidecars: pick(o, 3, 2), Check: balancer.TLS, Gateway: func(_ int, c *gatewayconfig.Config) { c.Shutdown.Drain = drain }}
	return on(ctx, o, r, "roll", cfg, func(s *Site) error {
		t := newTraffic(ctx, r, o.Seed)
		defer t.abandon()
		for n := range pick(o, 200, 16) {
			t.worker(n, lasting(longest), s.through(RouteEcho), 0)
		}
		opens := newTraffic(ctx, r, o.Seed+1)
		defer opens.abandon()
		for n := range pick(o, 8, 2) {
			opens.worker(n, small, s.through(RouteEcho), 20*time.Millisecond)
		}
		if err := pause(ctx, pick(o, 3*time.Second, 500*time.Millisecond)); err != nil { // all have begun
			return err
		}
		before := time.Now()
		if err := pause(ctx, pick(o, 15*time.Second, 2*time.Second)); err != nil {
			return err
		}
		begin := time.Now()
		for _, one := range s.Replicas {
			o.Note("%s is asked to stop", one.Name)
			if err := restartInOrder(ctx, one, r, drain); err != nil {
				return err
			}
			o.Note("%s is back; %d connections done, %d lost", one.Name, t.done.Load(), t.lost.Load())
		}
		over := time.Now()
		opens.finish()
		t.finish()
		rollFigures(r, t, opens, quantile(opens.delaysBetween(before, begin), .99), quantile(opens.delaysBetween(begin, over), .99), o.Short)
		drained(s, r)
		return nil
	})
}

func rollFigures(r *Result, t, opens *traffic, before, during time.Duration, short bool) {
	r.least("connections with transfers", float64(t.done.Load()), 1, "")
	r.most("lost of them", float64(t.lost.Load()), 0, "")
	r.least("new connections", float64(opens.done.Load()), 1, "")
	r.most("failed of them", float64(opens.lost.Load()), 0, "")
	r.figure("p99 of opens before", milliseconds(before), "ms")
	r.figure("p99 of opens during the roll", milliseconds(during), "ms")
	ratio := float64(during) / float64(max(before, time.Millisecond/10))
	if short {
		r.figure("ratio", ratio, "")
	} else {
		r.most("ratio", ratio, mostLatency, "")
	}
}

// restartInOrder stops a gateway as Kubernetes does and starts it again.
func restartInOrder(ctx context.Context, one *Replica, r *Result, drain time.Duration) error {
	ended, err := one.Terminate()
	if err != nil {
		return err
	}
	if err := watchDrain(ctx, one, r, drain, ended); err != nil {
		return err
	}
	if err := one.Launch(ctx); err != nil {
		return err
	}
	return one.Ready(ctx)
}

// watchDrain waits for a gateway to stop, and asks it meanwhile how far it is.
func watchDrain(ctx context.Context, one *Replica, r *Result, drain time.Duration, ended <-chan error) error {
	bound, tick := time.NewTimer(drain+readyTimeout), time.NewTicker(look)
	defer bound.Stop()
	defer tick.Stop()
	var seen struct {
		Draining bool   `json:"draining"`
		Phase    string `json:"phase"`
	}
	for {
		select {
		case err := <-ended:
			if err != nil {
				return r.stop("%s did not stop in order: %v", one.Name, err)
			}
			return nil
		case <-tick.C:
			if err := one.Get(ctx, "/api/drain", &seen); err == nil && seen.Draining && seen.Phase != "serving" {
				r.progress.Add(1)
			}
		case <-bound.C:
			return r.stop("%s does not stop", one.Name)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// drained looks at what the programs have said about it.
func drained(s *Site, r *Result) {
	said := 0
	for _, one := range s.Replicas {
		if one.Logged(`"msg":"draining"`) == 0 {
			r.fail("%s has not said that it drains", one.Name)
		}
		if one.Logged(`"msg":"step of the shutdown"`, `"reason":"stopped"`) == 0 {
			r.fail("%s has not logged the steps of its shutdown", one.Name)
		}
	}
	for _, one := range s.Sidecars {
		said += one.Logged(`"msg":"the gateway goes away"`)
	}
	r.least("times that a drain's progress was seen", float64(r.progress.Load()), 1, "")
	r.least("notices to sidecars", float64(said), 1, "")
	r.most("streams that the end of a drain has cut", float64(codeAt(s, errs.DrainEnded)), 0, "")
}

// codeAt counts the lines of the sidecars' logs with a code.
func codeAt(s *Site, code errs.Code) (n int) {
	for _, one := range s.Sidecars {
		n += one.Logged(code.String())
	}
	return n
}
