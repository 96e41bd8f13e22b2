package cluster

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"fairlead/shared/errs"
)

// parting is a way to part the owner of a tunnel from the replica that it is resumed through, and what that replica must
// then say.
type parting struct {
	name        string
	begin, heal func(owner, other *Replica) error
	told        errs.Code // 0: the tunnel is resumed
	again       bool      // once it has healed, the tunnel is resumed; else it is over, at its owner too
}

func partings() []parting {
	nothing := func(_, _ *Replica) error { return nil }
	return []parting{
		{"the other one cannot reach the owner", func(owner, _ *Replica) error {
			err := owner.Peer.Refuse()
			owner.Peer.Cut()
			return err
		}, func(owner, _ *Replica) error { return owner.Peer.Accept() }, errs.OwnerUnreachable, false},
		{"the owner reaches nobody", func(owner, _ *Replica) error { owner.Isolate(); return nil }, func(owner, _ *Replica) error { owner.Rejoin(); return nil }, errs.OwnerUnreachable, false},
		{"the owner is frozen", func(owner, _ *Replica) error { return owner.Pause(context.Background()) }, func(owner, _ *Replica) error { return owner.Continue() }, errs.OwnerUnreachable, false},
		{"the other one has no store", func(_, other *Replica) error { other.Store.Blackhole(); return nil }, func(_, other *Replica) error { other.Store.Resume(); return nil }, 0, true},
		{"the other one has neither a store nor a way to the owner", func(owner, other *Replica) error {
			other.Store.Blackhole()
			err := owner.Peer.Refuse()
			owner.Peer.Cut()
			return err
		}, func(owner, other *Replica) error {
			other.Store.Resume()
			return owner.Peer.Accept()
		}, errs.OwnerUnknown, true},
		{"nothing", nothing, nothing, 0, true},
	}
}

// partition parts replicas from each other and from Redis while a tunnel is resumed.
func partition(ctx context.Context, o Options, r *Result) error {
	return on(ctx, o, r, "partition", Config{Sidecars: 1}, func(s *Site) error {
		for n, p := range partings() {
			o.Note("%s", p.name)
			owner, other := s.Replicas[n%len(s.Replicas)], s.Replicas[(n+1)%len(s.Replicas)]
			if err := s.part(ctx, r, p, owner, other); err != nil {
				return err
			}
		}
		o.Note("a sidecar whose gateway reaches nobody")
		return s.partSidecar(ctx, o, r)
	})
}

// part resumes a tunnel through another replica while they are parted, and looks at what becomes of it.
func (s *Site) part(ctx context.Context, r *Result, p parting, owner, other *Replica) error {
	losses, err := s.Sum(ctx, "fairlead_gateway_lease_losses_total")
	if err != nil {
		return err
	}
	c, err := s.Client("parted")
	if err != nil {
		return err
	}
	t, err := c.Connect(ctx, owner.Address())
	if err != nil {
		return err
	}
	defer t.End()
	word, err := t.Talk(RouteEcho)
	if err != nil {
		return err
	}
	if err := p.begin(owner, other); err != nil {
		return err
	}
	resume, cancel := context.WithTimeout(ctx, stuck)
	err = t.Resume(resume, other.Address())
	cancel()
	if healed := p.heal(owner, other); healed != nil {
		return healed
	}
	switch code := errs.CodeOf(err); {
	case err == nil && p.told != 0:
		return r.stop("%s: the tunnel was resumed, wanted is %v", p.name, p.told)
	case err != nil && code != p.told:
		return r.stop("%s: the resume ended with %v, wanted is %v", p.name, err, p.told)
	}
	if p.again {
		return s.goesOn(ctx, r, p, t, word, other)
	}
	return s.isOver(ctx, r, p, t, word, owner, losses)
}

// goesOn is for a tunnel that is not given up: nothing of it is lost.
func (s *Site) goesOn(ctx context.Context, r *Result, p parting, t *Tunnel, word *Talk, other *Replica) error {
	var err error
	if untold := Until(ctx, readyTimeout, "it is resumed", func() bool {
		err = t.Resume(ctx, other.Address())
		return err == nil || t.Err() != nil
	}); untold != nil || err != nil {
		return r.stop("%s, healed: %v", p.name, errors.Join(err, untold))
	}
	if err := word.Say(); err != nil {
		return r.stop("%s, healed: %v", p.name, err)
	}
	return nil
}

// isOver is for a tunnel that was given up: its owner learns of it and ends it, and with it its streams.
func (s *Site) isOver(ctx context.Context, r *Result, p parting, t *Tunnel, word *Talk, owner *Replica, losses float64) error {
	if err := Until(ctx, readyTimeout, "the owner has ended the tunnel", func() bool {
		held, err := owner.Tunnels(ctx)
		now, failed := s.Sum(ctx, "fairlead_gateway_lease_losses_total")
		return err == nil && failed == nil && now > losses && !slices.Contains(held, t.Name())
	}, s.Err); err != nil {
		return r.stop("%s, healed: %v", p.name, err)
	}
	select {
	case <-t.Ended():
	case <-time.After(stuck):
		return r.stop("%s, healed: the owner's lane goes on", p.name)
	}
	t.Close(errs.New(errs.TunnelLost, "it was given up"))
	if _, err := io.Copy(io.Discard, word.s); err == nil {
		r.fail("%s: a stream of the tunnel ended as if it were complete", p.name)
	}
	return nil
}

// partSidecar isolates the gateway that a sidecar is at, and leads it to another one.
func (s *Site) partSidecar(ctx context.Context, o Options, r *Result) error {
	one, owner, other := s.Sidecars[0], s.Replicas[0], s.Replicas[1]
	if err := s.moveTo(ctx, one, owner); err != nil {
		return r.stop("%v", err)
	}
	open := newTraffic(ctx, &Result{}, o.Seed) // that it is lost is not a failure
	defer open.abandon()
	ended := make(chan error, 1)
	open.worker(0, func(*rand.Rand) exchange { return exchange{size: 1 << 40, piece: 64, pause: 20 * time.Millisecond} },
		func(ctx context.Context, e exchange, _ *rand.Rand) (time.Duration, error) {
			took, err := e.dial(ctx, one.Addr(RouteEcho))
			ended <- err
			<-ctx.Done()
			return took, err
		}, 0)
	if err := open.moves(ctx, 64); err != nil {
		return err
	}
	owner.Isolate()
	defer owner.Rejoin()
	s.Balancer.Only(other.Name)
	defer s.Balancer.Only()
	s.Balancer.Cut()
	select {
	case err := <-ended:
		if err == nil {
			r.fail("a connection over a gateway that was given up ended as if it were complete")
		}
	case <-time.After(stuck):
		return r.stop("a connection over a gateway that was given up hangs")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	o.Note("its connection has ended")
	r.least("tunnels that the sidecar was told to be lost", float64(one.Logged(errs.OwnerUnreachable.String())), 1, "")
	if _, err := (exchange{size: 1 << 20}).dial(ctx, one.Addr(RouteEcho)); err != nil {
		r.fail("a new connection: %v", err)
	}
	o.Note("a new connection has been carried")
	owner.Rejoin()
	if err := Until(ctx, readyTimeout, "the gateway has ended what was given up", func() bool {
		held, err := owner.Tunnels(ctx)
		return err == nil && len(held) == 0
	}, s.Err); err != nil {
		return r.stop("%v", err)
	}
	losses, err := s.Sum(ctx, "fairlead_gateway_lease_losses_total")
	r.least("leases lost, in all", losses, 1, "")
	return err
}
