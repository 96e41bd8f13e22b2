package limit

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"fairlead/shared/errs"
)

// handshakes limits by client address. The table forgets the longest unseen addresses first: to make it forget its own,
// a client needs as many addresses as the table holds.
type handshakes struct {
	limit  int // per minute
	burst  int
	seed   maphash.Seed
	shards []addressShard
}

type addressShard struct {
	mu    sync.Mutex
	rates *simplelru.LRU[netip.Prefix, *rate.Limiter]
	_     [64]byte // keeps the locks of two shards off one cache line
}

func newHandshakes(cfg Config, seed maphash.Seed) (*handshakes, error) {
	count, each := shards(orDefault(cfg.MaxAddresses, defaultMaxAddresses))
	h := &handshakes{limit: cfg.HandshakesPerMinute, burst: orDefault(cfg.HandshakeBurst, cfg.HandshakesPerMinute), seed: seed, shards: make([]addressShard, count)}
	for i := range h.shards {
		rates, err := simplelru.NewLRU[netip.Prefix, *rate.Limiter](each, nil)
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "table of client addresses")
		}
		h.shards[i].rates = rates
	}
	return h, nil
}

// Handshake counts a handshake of the client at addr. IPv6 addresses count by their /64, which is what one client
// commonly has; all invalid addresses count as one. The error is errs.HandshakeLimit, with Quota and RetryAfter.
func (l *Limiter) Handshake(addr netip.Addr) error {
	h := l.addresses
	if h == nil || l.rules.Load().address(addr)&ofHandshakes != 0 {
		return nil
	}
	now, key := l.now(), client(addr)
	s := &h.shards[maphash.Comparable(h.seed, key)%uint64(len(h.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rates.Get(key)
	if !ok {
		r = rate.NewLimiter(perMinute(h.limit), h.burst)
		s.rates.Add(key, r)
	}
	if r.AllowN(now, 1) {
		return nil
	}
	l.counts.handshakes.Inc()
	return errs.New(errs.HandshakeLimit, "more than %d handshakes per minute from %s", h.limit, key).
		Within(h.burst, 0, seconds((float64(h.burst)-r.TokensAt(now))/float64(r.Limit()))).After(untilNext(r, now))
}

func perMinute(n int) rate.Limit { return rate.Limit(float64(n) / 60) }

// untilNext is how long it takes until r allows one more.
func untilNext(r *rate.Limiter, now time.Time) time.Duration {
	return told((1 - r.TokensAt(now)) / float64(r.Limit()))
}

// client is the block of addresses that counts as one client.
func client(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
