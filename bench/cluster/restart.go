package cluster

import (
	"context"
	"math/rand/v2"
	"time"

	"fairlead/shared/errs"
)

// restart kills a replica and starts it again under its name. The sidecar learns the truth at its first attempt, connections
// that were open end, and those that were made meanwhile go on.
func restart(ctx context.Context, o Options, r *Result) error {
	return on(ctx, o, r, "restart", Config{Sidecars: 1, Sidecar: nil}, func(s *Site) error {
		for round := range pick(o, 10, 2) {
			if err := restartOnce(ctx, o, s, r, s.Replicas[round%len(s.Replicas)]); err != nil {
				return err
			}
		}
		r.least("tunnels whose owner was said to be gone", float64(codeAt(s, errs.OwnerGone)), 1, "")
		o.Note("Redis is killed, then %s", s.Replicas[0].Name)
		return killWithoutStore(ctx, s, r, s.Replicas[0])
	})
}

// restartOnce kills a replica that owns the sidecar's tunnels.
func restartOnce(ctx context.Context, o Options, s *Site, r *Result, owner *Replica) error {
	one := s.Sidecars[0]
	if err := s.moveTo(ctx, one, owner); err != nil {
		return r.stop("%v", err)
	}
	open := newTraffic(ctx, &Result{}, o.Seed) // that they are lost is not a failure
	defer open.abandon()
	var ended [5]error
	met := make(chan int, len(ended))
	for n := range ended {
		open.worker(n, func(*rand.Rand) exchange {
			return exchange{size: 1 << 40, piece: 64, pause: 20 * time.Millisecond}
		}, func(ctx context.Context, e exchange, rng *rand.Rand) (time.Duration, error) {
			took, err := e.dial(ctx, one.Addr(RouteEcho))
			ended[n] = err
			met <- n
			<-ctx.Done()
			return took, err
		}, 0)
	}
	if err := open.moves(ctx, int64(len(ended)*64)); err != nil {
		return err
	}
	before := one.Logged(errs.OwnerGone.String())
	o.Note("%s is killed", owner.Name)
	owner.Kill()
	if err := Until(ctx, readyTimeout, "the sidecar has noticed", func() bool {
		st, err := one.Status(ctx)
		return err == nil && st.State != stateConnected
	}); err != nil {
		return r.stop("%v", err)
	}
	queued := newTraffic(ctx, r, o.Seed+1)
	defer queued.abandon()
	for n := range 5 {
		queued.worker(n, small, s.through(RouteEcho), time.Hour)
	}
	if err := owner.Launch(ctx); err != nil {
		return err
	}
	if err := owner.Ready(ctx); err != nil {
		return err
	}
	for range ended {
		select {
		case n := <-met:
			if ended[n] == nil {
				r.fail("a connection over a killed gateway ended as if it were complete")
			}
		case <-time.After(stuck):
			return r.stop("a connection over a killed gateway hangs")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := Until(ctx, readyTimeout, "queued connections go on", func() bool { return queued.done.Load() == 5 }); err != nil {
		return r.stop("%v", err)
	}
	if one.Logged(errs.OwnerGone.String()) == before {
		r.fail("the sidecar was not told %s when %s came back", errs.OwnerGone, owner.Name)
	}
	s.Balancer.Only()
	return nil
}

// killWithoutStore kills a replica that owns the sidecar's tunnels while nobody can be asked whose they are. New connections
// are carried by the others, before they have waited too long.
func killWithoutStore(ctx context.Context, s *Site, r *Result, owner *Replica) error {
	if err := s.moveTo(ctx, s.Sidecars[0], owner); err != nil {
		return r.stop("%v", err)
	}
	s.Redis.Kill()
	if err := s.awaitStore(ctx, false); err != nil {
		return r.stop("%v", err)
	}
	s.Balancer.Only()
	owner.Kill()
	// What is opened before the sidecar has noticed is on the tunnel that nobody can tell the end of.
	if err := Until(ctx, readyTimeout, "the sidecar has noticed", func() bool {
		st, err := s.Sidecars[0].Status(ctx)
		for _, t := range st.Tunnels {
			if t.State == stateConnected && t.Replica == owner.Name {
				return false
			}
		}
		return err == nil
	}); err != nil {
		return r.stop("%v", err)
	}
	began := time.Now()
	if _, err := (exchange{size: 1 << 20}).dial(ctx, s.Sidecars[0].Addr(RouteEcho)); err != nil {
		r.fail("a new connection, without Redis and the gateway that the sidecar was at: %v", err)
	}
	r.figure("a new connection without Redis and owner, after", time.Since(began).Seconds(), "s")
	if err := s.Redis.Start(ctx); err != nil {
		return err
	}
	if err := owner.Launch(ctx); err != nil {
		return err
	}
	if err := owner.Ready(ctx); err != nil {
		return err
	}
	return s.awaitStore(ctx, true)
}

// stateConnected is the state, in a sidecar's status, of one that carries connections.
const stateConnected = "connected"

// moveTo makes a sidecar's tunnels anew, all at one replica, and lets the balancer lead there alone.
func (s *Site) moveTo(ctx context.Context, one *Sidecar, owner *Replica) error {
	s.Balancer.Only(owner.Name)
	one.Kill()
	if err := one.Launch(ctx); err != nil {
		return err
	}
	if err := one.Ready(ctx); err != nil {
		return err
	}
	return Until(ctx, readyTimeout, "all tunnels are at "+owner.Name, func() bool {
		st, err := one.Status(ctx)
		if err != nil || len(st.Tunnels) < tunnelsEach {
			return false
		}
		for _, t := range st.Tunnels {
			if t.State != stateConnected || t.Replica != owner.Name {
				return false
			}
		}
		return true
	})
}
