// Package balancer is a plain TCP load balancer, such as stands before the replicas of a gateway: it spreads connections
// at random over its backends, knows nothing of what they carry, keeps nobody at the same backend, and cuts and partitions
// on demand.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Backend is one of those that connections are spread over.
type Backend struct {
	Name    string // unique
	Address string // host:port
}

// Check is how a balancer finds out which backends are ready.
type Check int

// The checks.
const (
	None Check = iota // it does not: every backend is tried, and the next when a dial fails
	TCP               // a backend that takes connections is ready
	TLS               // one that answers GET /readyz with 200 over TLS is, as in a Service of Kubernetes; its certificate is not verified
)

const (
	defaultEvery = 100 * time.Millisecond
	defaultDial  = time.Second
	checkTimeout = time.Second
	bufferSize   = 64 << 10
)

// Config says where a balancer stands.
type Config struct {
	Listen   string // default "127.0.0.1:0"
	Backends []Backend
	Seed     uint64 // of where connections go; the same seed repeats the choices
	Check    Check
	Every    time.Duration // between two checks of a backend; default 100 ms
	Dial     time.Duration // after which the next backend is tried; default 1 s
}

// Stats are counted since the balancer was made.
type Stats struct {
	Connections int  // that it was given
	Active      int  // of them open now
	Failed      int  // dials that failed
	Ready       bool // it is given connections, as far as is known
}

// Balancer is a running balancer. Its methods may be called at any time and from any goroutine.
type Balancer struct {
	cfg      Config
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	rng      *rand.Rand
	backends []*backend
	only     []string // where new connections go; empty: anywhere
	closed   bool
}

// backend is a Backend with what is known of it; guarded by the balancer's mutex.
type backend struct {
	Backend
	stats Stats
	cut   bool          // partitioned
	moved chan struct{} // closed when the partition is over
	conns map[*conn]struct{}
}

// New starts a balancer.
func New(cfg Config) (*Balancer, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Every == 0 {
		cfg.Every = defaultEvery
	}
	if cfg.Dial == 0 {
		cfg.Dial = defaultDial
	}
	b := &Balancer{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0))}
	for _, one := range cfg.Backends {
		if b.find(one.Name) != nil {
			return nil, fmt.Errorf("two backends have the name %q", one.Name)
		}
		b.backends = append(b.backends, &backend{Backend: one, stats: Stats{Ready: cfg.Check == None}, conns: map[*conn]struct{}{}})
	}
	if len(b.backends) == 0 {
		return nil, errors.New("a balancer without backends")
	}
	var err error
	if b.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, err
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.tasks.Go(b.serve)
	if cfg.Check != None {
		for _, one := range b.backends {
			b.tasks.Go(func() { b.watch(one) })
		}
	}
	return b, nil
}

// Addr is where the balancer listens, "127.0.0.1:port".
func (b *Balancer) Addr() string { return b.listener.Addr().String() }

// Cut resets all connections (RST) and returns how many there were. Bytes under way are lost.
func (b *Balancer) Cut() int {
	conns := b.list(func(*backend) bool { return true })
	for _, c := range conns {
		c.cut()
	}
	return len(conns)
}

// CutBackend is Cut for the connections of one backend.
func (b *Balancer) CutBackend(name string) int {
	conns := b.list(func(one *backend) bool { return one.Name == name })
	for _, c := range conns {
		c.cut()
	}
	return len(conns)
}

// Partition parts a backend from the balancer silently: connections to it stay open and carry nothing, in neither
// direction, and dials to it end in the next backend after the time that they may take. Nothing is lost: Heal goes on
// where it stopped.
func (b *Balancer) Partition(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if one := b.find(name); one != nil && !one.cut {
		one.cut, one.moved = true, make(chan struct{})
	}
}

// Heal ends Partition.
func (b *Balancer) Heal(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if one := b.find(name); one != nil && one.cut {
		one.cut = false
		close(one.moved)
	}
}

// Only lets new connections go to these backends and no others; without names to all again. Open ones stay.
func (b *Balancer) Only(names ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.only = slices.Clone(names)
}

// Stats returns the counters of each backend, by name.
func (b *Balancer) Stats() map[string]Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[string]Stats, len(b.backends))
	for _, one := range b.backends {
		st := one.stats
		st.Active = len(one.conns)
		all[one.Name] = st
	}
	return all
}

// Close resets all connections, stops listening and waits for everything. It may be called twice.
func (b *Balancer) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	_ = b.listener.Close() // an error says that it was closed
	b.Cut()
	b.tasks.Wait()
}

// find returns a backend; the caller holds the mutex, or is the only one who knows the balancer.
func (b *Balancer) find(name string) *backend {
	for _, one := range b.backends {
		if one.Name == name {
			return one
		}
	}
	return nil
}

func (b *Balancer) list(of func(*backend) bool) (conns []*conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.backends {
		if !of(one) {
			continue
		}
		for c := range one.conns {
			conns = append(conns, c)
		}
	}
	return conns
}
