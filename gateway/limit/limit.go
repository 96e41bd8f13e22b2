// Package limit bounds what one tenant, and one client address, may ask of this gateway: how fast streams are opened, how
// many tunnels and streams there are at once, how fast their bytes flow and how much memory they pin, how often handshakes
// begin and how many connections wait for one; and what anybody may still ask of it when it is short of memory or CPU.
//
// The rate of opens, streams and tunnels hold for all replicas of a gateway together where Config has a Shared: each is
// granted here first, so that a flood costs no round trip, and then there. While Shared cannot be asked, a replica grants its
// share of each limit instead. Bandwidth and memory are of this replica alone, and so is what addresses and strangers may ask.
package limit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Tier is a named set of limits that a tenant has. 0 means unlimited, but for Burst.
//
// Tokens of one tenant may name different tiers. Each token is then granted by the limits of its own tier, while
// everything that the tenant has counts: tokens of several tiers get no more together than the best of these tiers gives
// alone, and a token of a small tier waits while others of the tenant use up more than that tier gives.
type Tier struct {
	OpensPerMinute int   // streams opened per minute, in the long run
	Burst          int   // streams opened at once after a pause; 0: as many as OpensPerMinute
	Tunnels        int   // at once
	Streams        int   // at once
	Bandwidth      int   // bytes per second of all streams together, each direction by itself
	Memory         int64 // bytes that the windows of all tunnels together hold beyond their initial size
}

func (t Tier) slots(k kind) int {
	if k == tunnels {
		return t.Tunnels
	}
	return t.Streams
}

func (t Tier) rate(name string) Rate {
	return Rate{Tier: name, PerMinute: t.OpensPerMinute, Burst: t.Burst}
}

// DefaultTier is the tier of tenants whose token names none, or one that is not configured.
const DefaultTier = "default"

const (
	defaultMaxTenants   = 16_384
	defaultMaxAddresses = 65_536
	tenantIdle          = 10 * time.Minute
	maxShards           = 64
	entriesPerShard     = 64 // fewer shards rather than smaller ones, which would overflow unevenly
	maxQuoted           = 128
)

// Config is what a Limiter needs.
type Config struct {
	// Tiers by name; one must be DefaultTier.
	Tiers map[string]Tier
	// Exempt frees tenants and addresses from limits.
	Exempt []Exemption
	// MaxTenants bounds the tenants that are tracked, approximately: they are spread over shards by hash, each with its
	// part of the bound. 0: 16,384.
	MaxTenants int
	// HandshakesPerMinute bounds the handshakes of one client address; 0: unlimited.
	HandshakesPerMinute int
	// HandshakeBurst is how many handshakes may come at once; 0: as many as HandshakesPerMinute.
	HandshakeBurst int
	// MaxAddresses bounds the addresses whose handshakes are tracked, as MaxTenants does. 0: 65,536.
	MaxAddresses int
	// Unauthenticated bounds the connections whose client is not known yet, of all addresses together; 0: unlimited.
	Unauthenticated int
	// UnauthenticatedPerAddress bounds those of one client address; 0: unlimited.
	UnauthenticatedPerAddress int
	// Memory is the budget of the process, above those of the tenants; nil: unbounded.
	Memory *link.Budget
	// Pressure decides what is shed; nil: nothing.
	Pressure *Pressure
	// Shared is what all replicas count together; nil: there is only this one, and Run, SetShare, SetDegraded and Restore
	// need not be called.
	Shared Shared
	// Replica makes ids of slots unique among all replicas; it must be another one after a restart. Empty: a random one.
	Replica string
	// Timeout is how long Shared may take to grant something, before the share decides. 0: 50 ms.
	Timeout time.Duration
	// Lease is how long Shared holds slots that are not renewed, as those of a replica that has crashed. 0: 45 s.
	Lease   time.Duration
	Metrics *metrics.Set     // nil: counted nowhere
	Now     func() time.Time // clock of the rates, but not of the bandwidth; nil: time.Now
}

// Limiter counts, paces and refuses. It is safe for concurrent use, needs no closing, and has no goroutines but those of
// Run.
type Limiter struct {
	changing  sync.Mutex            // held while rules change
	replicas  int                   // that share the limits; guarded by changing
	rules     atomic.Pointer[rules] // replaced whole
	now       func() time.Time
	seed      maphash.Seed
	tenants   []tenantShard
	addresses *handshakes // nil: unlimited
	strangers *strangers
	memory    *link.Budget
	pressure  *Pressure
	shared    *shared // nil: nobody shares the limits
	counts    counts
}

// New checks cfg and makes a Limiter. Errors are errs.ConfigInvalid.
func New(cfg Config) (*Limiter, error) {
	for _, n := range []int{cfg.MaxTenants, cfg.MaxAddresses, cfg.HandshakesPerMinute, cfg.HandshakeBurst, cfg.Unauthenticated, cfg.UnauthenticatedPerAddress} {
		if n < 0 {
			return nil, errs.New(errs.ConfigInvalid, "limits of handshakes, connections, tenants and addresses must not be negative")
		}
	}
	if cfg.Timeout < 0 || cfg.Lease < 0 {
		return nil, errs.New(errs.ConfigInvalid, "timeout and lease of shared limits must not be negative")
	}
	rules, err := newRules(cfg.Tiers, cfg.Exempt)
	if err != nil {
		return nil, err
	}
	rules.share = rules.divided(1)
	l := &Limiter{replicas: 1, shared: newShared(cfg), now: cfg.Now, seed: maphash.MakeSeed(), memory: cfg.Memory, pressure: cfg.Pressure}
	if l.now == nil {
		l.now = time.Now
	}
	l.rules.Store(rules)
	l.tenants = newTenantShards(orDefault(cfg.MaxTenants, defaultMaxTenants))
	l.strangers = newStrangers(cfg.Unauthenticated, cfg.UnauthenticatedPerAddress)
	if cfg.HandshakesPerMinute > 0 {
		if l.addresses, err = newHandshakes(cfg, l.seed); err != nil {
			return nil, err
		}
	}
	l.counts = newCounts(cfg.Metrics, l)
	return l, nil
}

// Apply replaces tiers and exemptions: for all later calls, for the bandwidth of what is open and is paced already, and
// for the memory of tunnels that are there. What tenants hold stays counted. Both are copied. Errors are
// errs.ConfigInvalid and change nothing.
func (l *Limiter) Apply(tiers map[string]Tier, exempt []Exemption) error {
	r, err := newRules(tiers, exempt)
	if err != nil {
		return err
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.put(r)
	return nil
}

// SetTiers is Apply that leaves the exemptions as they are.
func (l *Limiter) SetTiers(tiers map[string]Tier) error {
	l.changing.Lock()
	defer l.changing.Unlock()
	r, err := newRules(tiers, l.rules.Load().exempt)
	if err != nil {
		return err
	}
	l.put(r)
	return nil
}

// put makes rules known to everybody. Whoever works on a tenant has its shard's lock and reads the rules after taking it,
// so a tenant has either followed them already or is met here.
func (l *Limiter) put(r *rules) {
	r.share = r.divided(l.replicas)
	l.rules.Store(r)
	now := l.now()
	for i := range l.tenants {
		s := &l.tenants[i]
		s.mu.Lock()
		for _, e := range s.byName {
			e.Value.(*tenant).follow(r, now)
		}
		s.mu.Unlock()
	}
}

// Exempt says whether the tenant is exempt from a limit, one of Limits.
func (l *Limiter) Exempt(limit, tenant string) bool {
	s, err := setOf([]string{limit})
	return err == nil && l.rules.Load().tenant(tenant)&s != 0
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// shards is how many parts a table of max entries is split into, and how many entries each may hold.
func shards(max int) (count, each int) {
	count = min(maxShards, (max+entriesPerShard-1)/entriesPerShard)
	return count, (max + count - 1) / count
}
