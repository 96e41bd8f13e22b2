package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// sweepEvery is how often what has expired is dropped, by whoever comes next.
const sweepEvery = 10 * time.Second

// MemoryConfig is what a Memory needs.
type MemoryConfig struct {
	Now func() time.Time // nil: time.Now
}

// Memory is a Store in the process, for a single gateway. Everything in it expires, and it has no goroutines.
type Memory struct {
	now         func() time.Time
	incarnation string
	since       time.Time
	closed      chan struct{}
	watchers    watchers

	mu       sync.Mutex // guards the rest
	swept    time.Time
	replicas expiring[Replica]
	tunnels  expiring[Tunnel]
	circuits expiring[Circuit]
	probes   expiring[string] // by backend: who probes it
	keys     expiring[string] // by address
	revoked  expiring[Revocation]
	version  uint64 // of revoked
	tenants  map[string]*tenant
}

var _ Store = (*Memory)(nil)

// NewMemory makes an empty store.
func NewMemory(cfg MemoryConfig) *Memory {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Memory{
		now: cfg.Now, since: cfg.Now(), incarnation: random(), closed: make(chan struct{}),
		replicas: expiring[Replica]{}, tunnels: expiring[Tunnel]{}, circuits: expiring[Circuit]{}, probes: expiring[string]{},
		keys: expiring[string]{}, revoked: expiring[Revocation]{}, tenants: map[string]*tenant{},
	}
	m.swept = m.since
	return m
}

// random is a value that nobody else has.
func random() string {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

// expiring is a map of what counts for a while.
type expiring[T any] map[string]expires[T]

type expires[T any] struct {
	it    T
	until time.Time
}

func (e expiring[T]) get(name string, now time.Time) (it T, ok bool) {
	entry, ok := e[name]
	if !ok || !now.Before(entry.until) {
		return it, false
	}
	return entry.it, true
}

func (e expiring[T]) put(name string, it T, until time.Time) { e[name] = expires[T]{it, until} }

func (e expiring[T]) sweep(now time.Time) {
	for name, entry := range e {
		if !now.Before(entry.until) {
			delete(e, name)
		}
	}
}

// enter locks m for a call, unless ctx is done or m is closed. Whoever gets no error unlocks it.
func (m *Memory) enter(ctx context.Context) (now time.Time, err error) {
	if ctx.Err() != nil {
		return now, canceled(ctx)
	}
	select {
	case <-m.closed:
		return now, errs.New(errs.StoreUnavailable, "the store is closed")
	default:
	}
	m.mu.Lock()
	now = m.now()
	if now.Sub(m.swept) >= sweepEvery {
		m.swept = now
		m.sweep(now)
	}
	return now, nil
}

// canceled is the error of a call whose caller went away.
func canceled(ctx context.Context) error {
	return errs.Wrap(errs.Canceled, context.Cause(ctx), "ask the store")
}

func (m *Memory) sweep(now time.Time) {
	m.replicas.sweep(now)
	m.tunnels.sweep(now)
	m.circuits.sweep(now)
	m.probes.sweep(now)
	m.keys.sweep(now)
	m.revoked.sweep(now)
	for name, t := range m.tenants {
		if t.empty(now) {
			delete(m.tenants, name)
		}
	}
}

// Incarnation is that of the process.
func (m *Memory) Incarnation(ctx context.Context) (string, error) {
	if _, err := m.enter(ctx); err != nil {
		return "", err
	}
	m.mu.Unlock()
	return m.incarnation, nil
}

// Health is always up.
func (m *Memory) Health() Health { return Health{Up: true, Since: m.since} }

// Close ends those who watch. It may be called more than once.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.closed:
	default:
		close(m.closed)
	}
	return nil
}

// Watch is as in Store.
func (m *Memory) Watch(ctx context.Context, tell func(Event)) error {
	w := m.watchers.add()
	defer m.watchers.remove(w)
	return w.run(ctx, m.closed, tell)
}
