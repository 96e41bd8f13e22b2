package admin

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"fairlead/shared/errs"
)

// Limits that hold when the configuration names none. A page that is kept open asks some 200 times a minute.
const (
	DefaultRequests = 6000 // per minute
	DefaultFailures = 30   // per minute
	maxAddresses    = 4096 // that are counted; who wants to be forgotten needs that many
)

// records is how many refusals of one address are recorded in a minute, in the log and in the audit log; more are counted, and
// the next record says how many, so that a stranger cannot fill disks.
const records = 60

// limits counts requests by client address and by caller.
type limits struct {
	requests, failures int // per minute
	now                func() time.Time

	mu        sync.Mutex
	addresses *simplelru.LRU[netip.Prefix, *visitor]
	callers   map[string]*rate.Limiter // by name, of which there are as many as tokens
}

// visitor is who comes from one address.
type visitor struct {
	requests, failures, records *rate.Limiter
	muted                       int // refusals that were not recorded, since the last one that was
}

func newLimits(requests, failures int, now func() time.Time) (*limits, error) {
	l := &limits{requests: requests, failures: failures, now: now, callers: map[string]*rate.Limiter{}}
	var err error
	l.addresses, err = simplelru.NewLRU[netip.Prefix, *visitor](maxAddresses, nil)
	return l, err
}

func bucket(perMinute int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
}

// visitor is called with the lock held.
func (l *limits) visitor(addr netip.Addr) *visitor {
	key := block(addr)
	v, ok := l.addresses.Get(key)
	if !ok {
		v = &visitor{requests: bucket(l.requests), failures: bucket(l.failures), records: bucket(records)}
		l.addresses.Add(key, v)
	}
	return v
}

// block is the addresses that count as one client: IPv6 by its /64.
func block(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // invalid addresses count as one
	return prefix
}

// come counts a request from an address, and refuses it when there are too many, or when too many before it had a
// wrong token: then it is not looked at whether this one is right, or guessing would not be limited.
func (l *limits) come(addr netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, now := l.visitor(addr), l.now()
	if v.failures.TokensAt(now) < 1 {
		return exceeded("wrong tokens from %s", block(addr), l.failures, v.failures, now)
	}
	if !v.requests.AllowN(now, 1) {
		return exceeded("requests from %s", block(addr), l.requests, v.requests, now)
	}
	return nil
}

// fail counts a wrong token. Those that come at once may all be looked at, and are paid for afterwards.
func (l *limits) fail(addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.visitor(addr).failures.ReserveN(l.now(), 1)
}

// call counts a request of a caller, and tells where that leaves them.
func (l *limits) call(name string) (standing *errs.Quota, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.callers[name]
	if !ok {
		r = bucket(l.requests)
		l.callers[name] = r
	}
	now := l.now()
	if !r.AllowN(now, 1) {
		return nil, exceeded("requests of %s", name, l.requests, r, now)
	}
	left := int(r.TokensAt(now))
	return errs.New(errs.RequestLimit, "").Within(l.requests, left, refill(r, l.requests, now)).Quota, nil
}

// tell says whether a refusal is to be recorded, and how many before it were not.
func (l *limits) tell(addr netip.Addr) (yes bool, muted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.visitor(addr)
	if !v.records.AllowN(l.now(), 1) {
		v.muted++
		return false, 0
	}
	muted, v.muted = v.muted, 0
	return true, muted
}

func exceeded(what string, who any, perMinute int, r *rate.Limiter, now time.Time) error {
	wait := time.Duration((1 - r.TokensAt(now)) / float64(r.Limit()) * float64(time.Second)).Round(time.Microsecond)
	return errs.New(errs.RequestLimit, "more than %d "+what+" in a minute", perMinute, who).
		Within(perMinute, 0, refill(r, perMinute, now)).After(max((wait + time.Millisecond - 1).Truncate(time.Millisecond), time.Millisecond))
}

// refill is how long until all are left again.
func refill(r *rate.Limiter, perMinute int, now time.Time) time.Duration {
	return time.Duration((float64(perMinute) - r.TokensAt(now)) / float64(r.Limit()) * float64(time.Second))
}
