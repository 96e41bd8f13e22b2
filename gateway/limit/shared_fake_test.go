package limit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// counter is what replicas share, in the process: slots with leases, and a bucket for each tier.
type counter struct {
	mu      sync.Mutex
	tenants map[string]*counted
}

type counted struct {
	swept time.Time
	until [kinds]map[string]time.Time
	opens buckets
}

func newCounter() *counter { return &counter{tenants: map[string]*counted{}} }

func (c *counter) tenant(name string) *counted {
	t, ok := c.tenants[name]
	if !ok {
		t = &counted{opens: buckets{at: time.Now()}}
		for k := range t.until {
			t.until[k] = map[string]time.Time{}
		}
		c.tenants[name] = t
	}
	if time.Now().Equal(t.swept) {
		return t
	}
	t.swept = time.Now()
	for k := range t.until {
		for id, until := range t.until[k] {
			if !time.Now().Before(until) {
				delete(t.until[k], id)
			}
		}
	}
	return t
}

func (t *counted) kind(name string) map[string]time.Time {
	if name == Tunnels {
		return t.until[tunnels]
	}
	return t.until[streams]
}

func (c *counter) take(a Ask) (g Grant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tenant(a.Tenant)
	held := t.kind(a.Kind)
	if a.Limit > 0 && len(held) >= a.Limit {
		return Grant{Full: true, Held: len(held)}
	}
	if a.Rate.PerMinute > 0 {
		t.opens.advance(time.Now())
		k := t.opens.of(a.Rate)
		if k.tokens < 1 {
			return Grant{Held: len(held), Wait: seconds((1 - k.tokens) / k.rate), Reset: k.reset()}
		}
		t.opens.count()
		g.Remaining, g.Reset = int(k.tokens), k.reset()
	}
	held[a.ID] = time.Now().Add(a.Lease)
	g.Granted, g.Held = true, len(held)
	return g
}

func (c *counter) renew(lease time.Duration, slots ...Slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slots {
		c.tenant(s.Tenant).kind(s.Kind)[s.ID] = time.Now().Add(lease)
	}
}

func (c *counter) free(slots ...Slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slots {
		delete(c.tenant(s.Tenant).kind(s.Kind), s.ID)
	}
}

// held counts all tenants' slots when name is empty.
func (c *counter) held(name string) (n [kinds]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for each := range c.tenants {
		if name == "" || name == each {
			t := c.tenant(each)
			n[tunnels] += len(t.until[tunnels])
			n[streams] += len(t.until[streams])
		}
	}
	return n
}

func (c *counter) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tenants)
}

// line is a replica's connection to the counter.
type line struct {
	c       *counter
	cut     atomic.Bool   // nothing arrives
	deaf    atomic.Bool   // what is asked arrives, answers do not
	latency time.Duration // of the way there, and of the way back
	returns chan struct{} // nil: returns arrive like all else; else each when it gets one
	sent    struct{ takes, returns, renewals, renewed atomic.Int64 }
}

func (l *line) call(ctx context.Context, do func()) error {
	wait := func(d time.Duration) error {
		if d == 0 {
			return nil
		}
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return errs.Wrap(errs.StoreUnavailable, ctx.Err(), "test")
		}
	}
	if l.cut.Load() {
		return errs.New(errs.StoreUnavailable, "test")
	}
	if err := wait(l.latency); err != nil {
		return err
	}
	do()
	if l.deaf.Load() {
		<-ctx.Done()
		return errs.Wrap(errs.StoreUnavailable, ctx.Err(), "test")
	}
	return wait(l.latency)
}

func (l *line) Take(ctx context.Context, a Ask) (g Grant, err error) {
	l.sent.takes.Add(1)
	err = l.call(ctx, func() { g = l.c.take(a) })
	return g, err
}

func (l *line) Return(ctx context.Context, slots ...Slot) error {
	if l.returns != nil {
		select {
		case <-l.returns:
		case <-ctx.Done():
		}
		l.sent.returns.Add(1)
		l.c.free(slots...)
		return nil
	}
	l.sent.returns.Add(1)
	return l.call(ctx, func() { l.c.free(slots...) })
}

func (l *line) Renew(ctx context.Context, lease time.Duration, slots ...Slot) error {
	l.sent.renewals.Add(1)
	l.sent.renewed.Add(int64(len(slots)))
	return l.call(ctx, func() { l.c.renew(lease, slots...) })
}

func (l *line) Held(ctx context.Context, tenant string) (inTunnels, inStreams int, err error) {
	err = l.call(ctx, func() {
		n := l.c.held(tenant)
		inTunnels, inStreams = n[tunnels], n[streams]
	})
	return inTunnels, inStreams, err
}

// replica is a limiter that runs.
type replica struct {
	*Limiter
	*line
	set  *metrics.Set
	stop func() // in order; it may be called again
}

// newReplica makes the limiter of a replica; it is to be stopped.
func newReplica(t require.TestingT, c *counter, cfg Config, name string) *replica {
	r := &replica{line: &line{c: c}, set: metrics.NewSet()}
	cfg.Shared, cfg.Replica, cfg.Metrics = r.line, name, r.set
	var err error
	r.Limiter, err = New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Run(ctx)
	}()
	r.stop = func() {
		cancel()
		<-done
	}
	return r
}

// newReplicas makes replicas that are stopped with the test.
func newReplicas(t *testing.T, n int, cfg Config) (*counter, []*replica) {
	c := newCounter()
	all := make([]*replica, n)
	for i := range all {
		all[i] = newReplica(t, c, cfg, fmt.Sprint("gw-", i))
		all[i].SetShare(n)
		t.Cleanup(all[i].stop)
	}
	return c, all
}

// takeAll takes until it is refused, and returns what gives it back, and the refusal.
func takeAll(take func(string, string) (func(), error), tenant string) (releases []func(), refusal error) {
	for range 2000 {
		release, err := take(tenant, "")
		if err != nil {
			return releases, err
		}
		releases = append(releases, release)
	}
	return releases, nil
}

func releaseAll(releases []func()) {
	for _, release := range releases {
		release()
	}
}
