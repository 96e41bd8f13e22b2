package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
)

// The tier of every tenant. Its numbers can be shared by three.
const (
	limitOpens   = 600 // a minute
	limitBurst   = 60
	limitTunnels = 6
	limitStreams = 30

	mostGranted = 1.05 // of what the rate allows
)

// limits has tenants ask for more than they may have, of all replicas at once: first with a Redis, then without.
func limits(ctx context.Context, o Options, r *Result) error {
	cfg := Config{Gateway: func(_ int, c *gatewayconfig.Config) {
		c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {OpensPerMinute: limitOpens, Burst: limitBurst, Tunnels: limitTunnels, Streams: limitStreams}}
	}}
	return on(ctx, o, r, "limits", cfg, func(s *Site) error {
		t := newTraffic(ctx, r, o.Seed)
		defer t.abandon()
		if err := s.neighbour(ctx, t); err != nil {
			return err
		}
		if err := attack(ctx, o, s, r, "with Redis"); err != nil {
			return err
		}
		s.Redis.Kill()
		if err := s.awaitStore(ctx, false); err != nil {
			return r.stop("%v", err)
		}
		if err := attack(ctx, o, s, r, "without Redis"); err != nil {
			return err
		}
		t.finish()
		r.least("opens of another tenant meanwhile", float64(t.done.Load()), 1, "")
		r.most("failed of them", float64(t.lost.Load()), 0, "")
		r.figure("their p99", milliseconds(quantile(t.delaysBetween(time.Time{}, time.Now()), .99)), "ms")
		return nil
	})
}

// neighbour lets another tenant open, slower than its rate, through all replicas.
func (s *Site) neighbour(ctx context.Context, t *traffic) error {
	c, err := s.Client("neighbour")
	if err != nil {
		return err
	}
	for n, one := range s.Replicas {
		held, err := c.Connect(ctx, one.Address())
		if err != nil {
			return err
		}
		s.defers(func() error { held.End(); return nil })
		t.worker(n, small, func(ctx context.Context, e exchange, _ *rand.Rand) (time.Duration, error) {
			return held.Exchange(ctx, e, RouteEcho)
		}, time.Second/4)
	}
	return nil
}

// attack tries each limit as a tenant that is new, so that nothing is used up.
func attack(ctx context.Context, o Options, s *Site, r *Result, when string) error {
	o.Note("the attack %s", when)
	hoard, err := s.Client("hoarder " + when)
	if err != nil {
		return err
	}
	tunnels, err := s.hoardTunnels(ctx, hoard)
	defer func() {
		for _, t := range tunnels {
			t.End()
		}
	}()
	if err != nil {
		return err
	}
	r.most("tunnels "+when, float64(len(tunnels)), limitTunnels, "")
	r.least("tunnels "+when+", too", float64(len(tunnels)), limitTunnels, "")
	streams, err := hoardStreams(tunnels)
	if err != nil {
		return err
	}
	r.most("streams "+when, float64(streams), limitStreams, "")
	r.least("streams "+when+", too", float64(streams), limitStreams, "")
	hasty, err := s.Client("hasty " + when)
	if err != nil {
		return err
	}
	granted, took, err := s.openFast(ctx, hasty, pick(o, 15*time.Second, 3*time.Second))
	if err != nil {
		return err
	}
	allowed := limitBurst + limitOpens*took.Minutes()
	r.figure("opens granted "+when, float64(granted), "")
	r.most("opens "+when+", of those that the rate allows", float64(granted)/allowed, mostGranted, "")
	return nil
}

// hoardTunnels makes tunnels through all replicas until each has refused twice.
func (s *Site) hoardTunnels(ctx context.Context, c *Client) (got []*Tunnel, err error) {
	for refused := 0; refused < 2*len(s.Replicas); {
		for _, one := range s.Replicas {
			t, err := c.Connect(ctx, one.Address())
			switch {
			case err == nil:
				got = append(got, t)
			case errors.Is(err, errs.TunnelLimit):
				refused++
			default:
				return got, err
			}
			if len(got) > 10*limitTunnels {
				return got, nil
			}
		}
	}
	return got, nil
}

// hoardStreams opens streams on all tunnels at once, three times as many as are allowed, and counts those that are granted.
func hoardStreams(tunnels []*Tunnel) (int, error) {
	if len(tunnels) == 0 {
		return 0, errors.New("there is no tunnel to open streams on")
	}
	var granted atomic.Int64
	var tasks sync.WaitGroup
	failed := make(chan error, 3*limitStreams)
	for n := range 3 * limitStreams {
		tasks.Go(func() {
			switch _, err := tunnels[n%len(tunnels)].Talk(RouteEcho); {
			case err == nil:
				granted.Add(1)
			case !refusedByLimit(err):
				failed <- err
			}
		})
	}
	tasks.Wait()
	select {
	case err := <-failed:
		return 0, fmt.Errorf("a stream: %w", err)
	default:
		return int(granted.Load()), nil
	}
}

func refusedByLimit(err error) bool {
	return errors.Is(err, errs.StreamLimit) || errors.Is(err, errs.OpenRate)
}

// openFast opens and ends streams through all replicas, as fast as they answer.
func (s *Site) openFast(ctx context.Context, c *Client, d time.Duration) (granted int64, took time.Duration, err error) {
	var count atomic.Int64
	var tasks sync.WaitGroup
	failed := make(chan error, 2*len(s.Replicas))
	began := time.Now()
	for _, one := range s.Replicas {
		t, err := c.Connect(ctx, one.Address())
		if err != nil {
			return 0, 0, err
		}
		defer t.End()
		for range 2 {
			tasks.Go(func() {
				for time.Since(began) < d && ctx.Err() == nil {
					switch _, err := t.Exchange(ctx, exchange{size: 16}, RouteEcho); {
					case err == nil:
						count.Add(1)
					case !refusedByLimit(err):
						failed <- err
						return
					}
				}
			})
		}
	}
	tasks.Wait()
	took = time.Since(began)
	select {
	case err := <-failed:
		return 0, 0, fmt.Errorf("an open: %w", err)
	default:
		return count.Load(), took, context.Cause(ctx)
	}
}
