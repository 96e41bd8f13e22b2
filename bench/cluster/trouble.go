package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	gatewayconfig "fairlead/gateway/config"
)

// phase is one trouble with Redis.
type phase struct {
	name       string
	begin, end func(ctx context.Context, s *Site) error
}

// trouble lets Redis be in all kinds of it, under traffic.
func trouble(ctx context.Context, o Options, r *Result) error {
	// Limits that nobody reaches have every open ask the store.
	gateway := func(_ int, c *gatewayconfig.Config) {
		const plenty = 100_000
		c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {OpensPerMinute: plenty, Burst: plenty, Tunnels: plenty, Streams: plenty}}
	}
	if err := onPrepared(ctx, o, r, "redis", Config{Sidecars: 1, Gateway: gateway}, func(s *Site) error { return troubled(ctx, o, s, r) }); err != nil {
		return err
	}
	return on(ctx, o, r, "sentinel", Config{Sidecars: 1, Sentinel: true, Gateway: gateway}, func(s *Site) error { return failover(ctx, o, s, r) })
}

func phases() []phase {
	ask := func(words ...string) func(context.Context, *Site) error {
		return func(ctx context.Context, s *Site) error { return RedisDo(ctx, s.Redis.Addr(), words...) }
	}
	return []phase{
		{"frozen", func(_ context.Context, s *Site) error { return s.Redis.Pause() }, func(_ context.Context, s *Site) error { return s.Redis.Continue() }},
		{"killed, then empty", func(_ context.Context, s *Site) error { s.Redis.Kill(); return nil }, func(ctx context.Context, s *Site) error { return s.Redis.Start(ctx) }},
		{"full", ask("CONFIG", "SET", "maxmemory", "1"), ask("CONFIG", "SET", "maxmemory", "0")},
		{"read-only", ask("REPLICAOF", "127.0.0.1", "1"), ask("REPLICAOF", "NO", "ONE")},
	}
}

// troubled starts without a Redis, and takes it through its phases.
func troubled(ctx context.Context, o Options, s *Site, r *Result) error {
	s.Redis.Kill()
	if err := errors.Join(s.StartReplicas(ctx), s.StartSidecars(ctx)); err != nil {
		return r.stop("without a Redis at the start: %v", err)
	}
	t, err := s.transfers(ctx, o, r)
	if err != nil {
		return err
	}
	defer t.abandon()
	absent := phase{"absent at the start", func(context.Context, *Site) error { return nil }, func(ctx context.Context, s *Site) error { return s.Redis.Start(ctx) }}
	if err := s.during(ctx, o, r, t, absent); err != nil {
		return err
	}
	before, err := s.sizes(ctx)
	if err != nil {
		return err
	}
	for range pick(o, 3, 1) {
		for _, p := range phases() {
			if err := s.during(ctx, o, r, t, p); err != nil {
				return err
			}
		}
	}
	after, err := s.sizes(ctx)
	if err != nil {
		return err
	}
	t.finish()
	r.least("transfers, every hash equal", float64(t.done.Load()), 1, "")
	r.most("lost", float64(t.lost.Load()), 0, "")
	for n, one := range s.Replicas {
		r.most("goroutines of "+one.Name, after[n].goroutines, 1.5*before[n].goroutines+50, "")
		r.most("memory of "+one.Name, after[n].memory, 1.5*before[n].memory+64, "MiB")
	}
	return nil
}

// transfers is connections of all lengths, through the sidecar, and opens at every gateway.
func (s *Site) transfers(ctx context.Context, o Options, r *Result) (*traffic, error) {
	t := newTraffic(ctx, r, o.Seed)
	for n := range pick(o, 16, 6) {
		plan := lasting(2 * time.Second)
		if n%3 == 0 {
			plan = small
		}
		t.worker(n, plan, s.through(RouteEcho), 20*time.Millisecond)
	}
	if err := s.neighbour(ctx, t); err != nil {
		t.abandon()
		return nil, err
	}
	return t, nil
}

// during takes Redis through a phase: it is seen, connections are opened and end well meanwhile, and it is over when it is.
func (s *Site) during(ctx context.Context, o Options, r *Result, t *traffic, p phase) error {
	o.Note("Redis is %s", p.name)
	if err := p.begin(ctx, s); err != nil {
		return fmt.Errorf("redis %s: %w", p.name, err)
	}
	if err := s.awaitStore(ctx, false); err != nil {
		return r.stop("redis %s: %v", p.name, err)
	}
	done := t.done.Load()
	if err := pause(ctx, pick(o, 10*time.Second, time.Second)); err != nil {
		return err
	}
	if err := Until(ctx, readyTimeout, "connections are carried", func() bool { return t.done.Load() > done }); err != nil {
		return r.stop("redis %s: %v", p.name, err)
	}
	r.figure("connections while Redis is "+p.name, float64(t.done.Load()-done), "")
	if err := p.end(ctx, s); err != nil {
		return fmt.Errorf("redis %s, its end: %w", p.name, err)
	}
	began := time.Now()
	if err := s.awaitStore(ctx, true); err != nil {
		return r.stop("redis was %s: %v", p.name, err)
	}
	r.figure("until it is used again", time.Since(began).Seconds(), "s")
	return s.Err()
}

// awaitStore waits until all gateways say that the store can be used, or cannot: their metrics and their API.
func (s *Site) awaitStore(ctx context.Context, up bool) error {
	return Until(ctx, readyTimeout, fmt.Sprintf("all gateways say that the store is up: %v", up), func() bool {
		for _, one := range s.Replicas {
			if said, err := one.StoreUp(ctx); err != nil || said != up {
				return false
			}
		}
		return true
	}, s.Err)
}

// StoreUp says whether the gateway can use its store, as far as it says itself: as a metric, and to a person.
func (r *Replica) StoreUp(ctx context.Context) (bool, error) {
	m, err := r.Metrics(ctx)
	if err != nil {
		return false, err
	}
	up, known := m.Sum("fairlead_gateway_store_up")
	if !known {
		return false, fmt.Errorf("%s has no metric of its store", r.Name)
	}
	var said struct {
		Store struct {
			Up    bool   `json:"up"`
			Error string `json:"error"`
		} `json:"store"`
	}
	if err := r.Get(ctx, "/api/replicas", &said); err != nil {
		return false, err
	}
	if said.Store.Up != (up == 1) || said.Store.Up != (said.Store.Error == "") {
		return false, fmt.Errorf("%s says %+v about its store, and %g as a metric", r.Name, said.Store, up)
	}
	return said.Store.Up, nil
}

// size is what a gateway uses.
type size struct{ goroutines, memory float64 } // memory in MiB

func (s *Site) sizes(ctx context.Context) (list []size, err error) {
	for _, one := range s.Replicas {
		m, err := one.Metrics(ctx)
		if err != nil {
			return nil, err
		}
		goroutines, _ := m.Sum("go_goroutines")
		memory, _ := m.Sum("process_resident_memory_bytes")
		list = append(list, size{goroutines, memory / (1 << 20)})
	}
	return list, nil
}

// failover kills the master of two Redis.
func failover(ctx context.Context, o Options, s *Site, r *Result) error {
	t, err := s.transfers(ctx, o, r)
	if err != nil {
		return err
	}
	defer t.abandon()
	if err := s.awaitStore(ctx, true); err != nil {
		return r.stop("with a Sentinel: %v", err)
	}
	done := t.done.Load()
	o.Note("the master of two Redis is killed")
	s.Redis.Kill()
	began := time.Now()
	if err := Until(ctx, readyTimeout, "the gateways use the other Redis", func() bool {
		n, err := redisAsk(ctx, s.Spare.Addr(), "DBSIZE")
		role, _ := redisAsk(ctx, s.Spare.Addr(), "INFO", "replication")
		return err == nil && n != "0" && strings.Contains(role, "role:master")
	}, s.Err); err != nil {
		return r.stop("%v", err)
	}
	if err := s.awaitStore(ctx, true); err != nil {
		return r.stop("after a failover: %v", err)
	}
	r.figure("failover", time.Since(began).Seconds(), "s")
	if err := Until(ctx, readyTimeout, "connections are carried", func() bool { return t.done.Load() > done }); err != nil {
		return r.stop("%v", err)
	}
	t.finish()
	r.least("transfers over a failover", float64(t.done.Load()), 1, "")
	r.most("lost of them", float64(t.lost.Load()), 0, "")
	return nil
}
