package limit

import (
	"context"
	"crypto/rand"
	"strconv"
	"sync/atomic"
	"time"
)

// Shared counts what all replicas of a gateway have granted. Its methods are safe for concurrent use and bounded by their
// contexts; whatever error they have, it could not be asked.
type Shared interface {
	// Take grants or refuses in one atomic step; a refusal takes nothing. A slot with an ID that is held already is held
	// anew, for the whole of Lease.
	Take(ctx context.Context, ask Ask) (Grant, error)
	// Return frees slots; those that are not held are no error.
	Return(ctx context.Context, slots ...Slot) error
	// Renew holds slots for another lease, and takes those that were forgotten, whatever the limit.
	Renew(ctx context.Context, lease time.Duration, slots ...Slot) error
	// Held counts what a tenant holds at all replicas.
	Held(ctx context.Context, tenant string) (tunnels, streams int, err error)
}

// Slot is one of what a tenant may have so many of.
type Slot struct {
	Tenant string
	Kind   string // Streams or Tunnels
	ID     string // unique among all replicas
}

// Rate is a tier's rate of opens.
type Rate struct {
	Tier      string
	PerMinute int // 0: no limit
	Burst     int // at least 1 with PerMinute
}

// Ask is a wish for a slot, and with Rate for an open.
type Ask struct {
	Slot
	Limit int // slots that the tenant may hold at all replicas together; 0: no limit
	Rate  Rate
	Lease time.Duration // after which the slot is free again unless it is renewed
}

// Grant is the answer.
type Grant struct {
	Granted   bool
	Full      bool          // not granted because Limit is reached; else it was the rate
	Held      int           // slots that the tenant holds at all replicas
	Remaining int           // opens that the rate grants at once after this one
	Wait      time.Duration // until the rate grants one more
	Reset     time.Duration // until the rate is whole again
}

const (
	defaultTimeout = 50 * time.Millisecond
	defaultLease   = 45 * time.Second

	// batchSlots is how many slots are returned or renewed at once: enough for one round trip to cost little, few enough for
	// Shared to answer others in between.
	batchSlots = 256
	// sendTimeout bounds a batch, which nobody waits for.
	sendTimeout = 2 * time.Second
	// maxReturns bounds the slots that are to be returned; more are left to their leases.
	maxReturns = 16_384
	// fullFor is for how long a tenant that holds all slots is refused without asking again. It is far below what it is
	// told to wait, and makes a flood of a tenant cheap that has its slots at other replicas.
	fullFor = 100 * time.Millisecond
)

// shared is what a Limiter needs for Shared.
type shared struct {
	Shared
	timeout, lease time.Duration
	prefix         string // of the ids of slots
	ids            atomic.Uint64
	mode           standing
	returns        returns
	sending        chan struct{} // holds one while a batch is collected and sent: a slot is never renewed after it was returned
	owing          chan struct{} // something is held that Shared may not know
	counts         sharedCounts
}

func newShared(cfg Config) *shared {
	if cfg.Shared == nil {
		return nil
	}
	sh := &shared{Shared: cfg.Shared, timeout: cfg.Timeout, lease: cfg.Lease, prefix: cfg.Replica + "/", owing: make(chan struct{}, 1), sending: make(chan struct{}, 1)}
	if cfg.Replica == "" {
		sh.prefix = rand.Text() + "/"
	}
	if sh.timeout == 0 {
		sh.timeout = defaultTimeout
	}
	if sh.lease == 0 {
		sh.lease = defaultLease
	}
	sh.mode.restored = make(chan struct{}, 1)
	sh.returns.most = maxReturns
	sh.returns.wake, sh.returns.again = make(chan struct{}, 1), make(chan struct{}, 1)
	return sh
}

// slot is one that a tenant holds, or has released. Guarded by the lock of the tenant's shard.
type slot struct {
	t        *tenant
	id       uint64
	kind     kind
	tier     string
	index    int         // in joint.slots; -1: it is not held
	known    bool        // Shared may hold it
	until    time.Time   // Shared holds it at least as long, as far as is known; zero: nothing is known
	lapses   time.Time   // Shared holds it no longer; set when it is released
	released atomic.Bool // not guarded
}

// outward is the slot in the words of Shared.
func (sh *shared) outward(x *slot) Slot {
	return Slot{Tenant: x.t.name, Kind: x.kind.String(), ID: sh.prefix + strconv.FormatUint(x.id, 36)}
}

// joint is what a tenant has of what replicas share. Guarded by the shard's lock.
type joint struct {
	slots    [kinds][]*slot  // held
	idle     [kinds][]*slot  // released, but not returned yet: who opens next takes over one of them
	queued   bool            // somebody will look for what is idle
	flight   chan struct{}   // closed when those that are being returned are; nil: none are
	returned uint64          // times that some were returned
	full     [kinds]fullness // what Shared said last
	said     saying          // of the last open that it granted
	opens    *buckets        // what was used of the share; nil: the share never decided
}

// saying is what Shared said that is left of a tier's opens.
type saying struct {
	tier string
	left int
	at   time.Time
}

// fullness is that Shared has refused a slot because there were so many.
type fullness struct {
	limit, held int
	until       time.Time // when it is asked again
}

// hold counts x among those that are held.
func (sh *shared) hold(x *slot) {
	sh.counts.slots.Add(1)
	j := x.t.joint
	x.index = len(j.slots[x.kind])
	j.slots[x.kind] = append(j.slots[x.kind], x)
}

// drop is the contrary of hold.
func (sh *shared) drop(x *slot) {
	sh.counts.slots.Add(-1)
	j := x.t.joint
	all := j.slots[x.kind]
	last := all[len(all)-1]
	all[x.index], last.index = last, x.index
	all[len(all)-1] = nil
	j.slots[x.kind], x.index = all[:len(all)-1], -1
}

// follow takes over rules: what was used of the share carries over, and Shared is asked anew.
func (j *joint) follow(r *rules, now time.Time) {
	j.full = [kinds]fullness{}
	if j.opens != nil {
		j.opens.advance(now)
		j.opens.follow(r.share)
	}
}

// recovered says whether nothing is lost by forgetting it, while nothing is held.
func (j *joint) recovered(now time.Time) bool {
	return !now.Before(j.full[streams].until) && !now.Before(j.full[tunnels].until) && (j.opens == nil || j.opens.full(now))
}

// SharedUsage is what the tenant holds at all replicas together, of what has limits; without Shared, Usage. The error is
// that of Shared.
func (l *Limiter) SharedUsage(ctx context.Context, name string) (tunnelsHeld, streamsHeld int, err error) {
	if l.shared == nil {
		tunnelsHeld, streamsHeld = l.Usage(name)
		return tunnelsHeld, streamsHeld, nil
	}
	return l.shared.Held(ctx, name)
}
