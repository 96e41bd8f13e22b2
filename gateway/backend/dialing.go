package backend

import (
	"cmp"
	"context"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/ratelimit"

	"fairlead/shared/telemetry"
)

// Dialing bounds and paces the connections that the gateway makes to one backend. Passthrough connections and SSH
// connections of its own have queues of their own, of the same size.
type Dialing struct {
	Concurrent          int // passthrough dials under way, and an eighth more for tenants that have none; 0: 64
	PerSecond           int // passthrough dials that begin in a second, evenly; 0: any number
	Handshakes          int // SSH connections that have not logged in yet, and an eighth more likewise; 0: 8 (sshd begins to drop at 10: MaxStartups)
	HandshakesPerSecond int // SSH connections that begin in a second, evenly; 0: 50
	Burst               int // how many of either may begin at once after a pause; 0: 10
	Queue               int // who wait, of all tenants; 0: 4096
	QueuePerTenant      int // who wait, of one tenant; 0: 1024
}

func (d Dialing) filled() Dialing {
	d.Concurrent = cmp.Or(d.Concurrent, 64)
	d.Handshakes = cmp.Or(d.Handshakes, 8)
	d.HandshakesPerSecond = cmp.Or(d.HandshakesPerSecond, 50)
	d.Burst = cmp.Or(d.Burst, 10)
	d.Queue = cmp.Or(d.Queue, 4096)
	d.QueuePerTenant = cmp.Or(d.QueuePerTenant, 1024)
	return d
}

// maxPace bounds what pace allows in a second: more is no pace, and far more overflows its arithmetic.
const maxPace = 1_000_000

func (d Dialing) check(bad func(string, ...any), backend string) {
	for _, setting := range []struct {
		name  string
		value int
	}{
		{"concurrent", d.Concurrent}, {"per_second", d.PerSecond}, {"handshakes", d.Handshakes}, {"handshakes_per_second", d.HandshakesPerSecond},
		{"burst", d.Burst}, {"queue", d.Queue}, {"queue_per_tenant", d.QueuePerTenant},
	} {
		if setting.value < 0 || setting.value > maxPace {
			bad("backends.%s.dialing.%s is %d: it must be from 0 to %d", backend, setting.name, setting.value, maxPace)
		}
	}
}

// queue gives a backend its queues: those that it had before, when they are configured alike.
func (s *Set) queue(r, before *remote) {
	if before != nil && before.Dialing == r.Dialing {
		r.dials, r.logins = before.dials, before.logins
		return
	}
	d, set := r.Dialing.filled(), r.counts.set
	r.dials = s.newTurns(&r.Backend, d, turnKind{name: "dial", limit: "concurrent"}, d.Concurrent, d.PerSecond, set)
	r.logins = s.newTurns(&r.Backend, d, turnKind{name: "handshake", limit: "handshakes"}, d.Handshakes, d.HandshakesPerSecond, set)
}

// spareShare is how many dials under way allow one more of a tenant that has none. With 8 handshakes that makes 9, which
// sshd still takes (MaxStartups 10).
const spareShare = 8

func (s *Set) newTurns(b *Backend, d Dialing, kind turnKind, limit, perSecond int, set *metrics.Set) *turns {
	q := &turns{b: b, kind: kind, limit: limit, spare: limit / spareShare, most: d.Queue, each: d.QueuePerTenant, pace: newPace(s.base, perSecond, d.Burst),
		base: s.base, spawn: s.spawn, counts: newTurnCounts(set, b.Name, kind.name), lines: make(map[string]*line), active: make(map[string]int)}
	if s.breaker != nil {
		q.circuit = func() bool { return s.breaker.Closed(b.Name) }
	}
	return q
}

// circuitChanged has those who wait for a backend ask the breaker again: what it refuses must not wait.
func (s *Set) circuitChanged(backend string) {
	if b := s.table.Load().backends[backend]; b != nil && !s.breaker.Closed(backend) {
		b.dials.wake()
		b.logins.wake()
	}
}

// pace spreads beginnings over time, and lets some catch up after a pause.
type pace struct{ limiter ratelimit.Limiter }

// newPace returns nil, which is no pace, for 0 in a second. ctx is when nobody waits any more.
func newPace(ctx context.Context, perSecond, burst int) *pace {
	if perSecond == 0 {
		return nil
	}
	return &pace{ratelimit.New(perSecond, ratelimit.WithSlack(burst), ratelimit.WithClock(clock{ctx}))}
}

// take waits until the next may begin, at most a second, and returns how long it has. Only one goroutine may be in it.
func (p *pace) take() time.Duration {
	start := time.Now()
	p.limiter.Take()
	return time.Since(start)
}

// clock lets the limiter, which knows no context, sleep no longer than a context lasts.
type clock struct{ ctx context.Context }

func (c clock) Now() time.Time { return time.Now() }

func (c clock) Sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ctx.Done():
	}
}

// turnCounts are the metrics of one queue, of all tenants together.
type turnCounts struct {
	waiting *metrics.Gauge
	running *metrics.Gauge
	waited  *metrics.PrometheusHistogram // of those who waited
	refused *metrics.Counter
}

func newTurnCounts(set *metrics.Set, backend, kind string) *turnCounts {
	name := func(metric string) string {
		return telemetry.Name("fairlead_gateway_backend_dial"+metric, "backend", backend, "kind", kind)
	}
	return &turnCounts{
		waiting: set.GetOrCreateGauge(name("_queue_length"), nil),
		running: set.GetOrCreateGauge(name("s_in_flight"), nil),
		waited:  set.GetOrCreatePrometheusHistogramExt(name("_queue_seconds"), []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}),
		refused: set.GetOrCreateCounter(name("_queue_refused_total")),
	}
}

// QueueStats is the state of one of a backend's queues.
type QueueStats struct {
	Backend string
	Kind    string // dial: passthrough connections; handshake: the gateway's own SSH connections
	Limit   int    // dials that may be under way
	Running int    // dials under way
	Waiting int
	Tenants int           // that wait
	Oldest  time.Duration // of the waits so far, the longest
}

// Queues lists the queues of all backends that have somebody in them or a dial under way, by no particular order.
func (s *Set) Queues() []QueueStats {
	var all []QueueStats
	for _, b := range s.table.Load().backends {
		for _, q := range []*turns{b.dials, b.logins} {
			if one := q.stats(); one.Running+one.Waiting > 0 {
				all = append(all, one)
			}
		}
	}
	return all
}

func (q *turns) stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	one := QueueStats{Backend: q.b.Name, Kind: q.kind.name, Limit: q.limit, Running: q.running, Waiting: q.waiting, Tenants: q.ring.Len()}
	for e := q.ring.Front(); e != nil; e = e.Next() {
		one.Oldest = max(one.Oldest, time.Since(e.Value.(*line).queue.Front().Value.(*turn).since))
	}
	return one
}
