// Package limit bounds what one tenant, and one client address, may ask of this gateway: how fast streams are opened, how
// many tunnels and streams there are at once, how often handshakes begin. It counts locally; what other replicas have
// granted is not seen here.
package limit

import (
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

// Tier is a named set of limits that a tenant has. 0 means unlimited, but for Burst.
type Tier struct {
	OpensPerMinute int // streams opened per minute, in the long run
	Burst          int // streams opened at once after a pause; 0: as many as OpensPerMinute
	Tunnels        int // at once
	Streams        int // at once
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
	// MaxTenants bounds the tenants that are tracked, approximately: they are spread over shards by hash, each with its
	// part of the bound. 0: 16,384.
	MaxTenants int
	// HandshakesPerMinute bounds the handshakes of one client address; 0: unlimited.
	HandshakesPerMinute int
	// HandshakeBurst is how many handshakes may come at once; 0: as many as HandshakesPerMinute.
	HandshakeBurst int
	// MaxAddresses bounds the addresses that are tracked, as MaxTenants does. 0: 65,536.
	MaxAddresses int
	Metrics      *metrics.Set     // nil: counted nowhere
	Now          func() time.Time // clock of the rates; nil: time.Now
}

// Limiter counts and refuses. It is safe for concurrent use, has no goroutines and needs no closing.
type Limiter struct {
	tiers     atomic.Pointer[map[string]Tier] // the map is never changed
	now       func() time.Time
	seed      maphash.Seed
	tenants   []tenantShard
	addresses *handshakes // nil: unlimited
	counts    counts
}

// New checks cfg and makes a Limiter. Errors are errs.ConfigInvalid.
func New(cfg Config) (*Limiter, error) {
	if cfg.MaxTenants < 0 || cfg.MaxAddresses < 0 || cfg.HandshakesPerMinute < 0 || cfg.HandshakeBurst < 0 {
		return nil, errs.New(errs.ConfigInvalid, "limits of handshakes, tenants and addresses must not be negative")
	}
	l := &Limiter{now: cfg.Now, seed: maphash.MakeSeed(), counts: newCounts(cfg.Metrics)}
	if l.now == nil {
		l.now = time.Now
	}
	if err := l.SetTiers(cfg.Tiers); err != nil {
		return nil, err
	}
	l.tenants = newTenantShards(orDefault(cfg.MaxTenants, defaultMaxTenants))
	if cfg.HandshakesPerMinute > 0 {
		var err error
		if l.addresses, err = newHandshakes(cfg, l.seed); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// SetTiers replaces the tiers for all later calls; what tenants hold stays counted. The map is copied. Errors are
// errs.ConfigInvalid and change nothing.
func (l *Limiter) SetTiers(tiers map[string]Tier) error {
	if _, ok := tiers[DefaultTier]; !ok {
		return errs.New(errs.ConfigInvalid, "tiers lacks %q, which tenants without a tier have", DefaultTier)
	}
	ready := make(map[string]Tier, len(tiers))
	for name, t := range tiers {
		if t.OpensPerMinute < 0 || t.Burst < 0 || t.Tunnels < 0 || t.Streams < 0 {
			return errs.New(errs.ConfigInvalid, "tiers.%s holds a negative limit; 0 means unlimited", name)
		}
		if t.Burst == 0 {
			t.Burst = t.OpensPerMinute
		}
		ready[name] = t
	}
	l.tiers.Store(&ready)
	return nil
}

func (l *Limiter) tier(name string) Tier {
	tiers := *l.tiers.Load()
	if t, ok := tiers[name]; ok {
		return t
	}
	return tiers[DefaultTier]
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
