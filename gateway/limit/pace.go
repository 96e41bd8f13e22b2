package limit

import (
	"net"
	"sync"
	"sync/atomic"

	"fairlead/shared/relay"
)

// The directions of a connection to a backend.
const (
	toBackend = iota
	fromBackend
	directions
)

// pacing is how the bytes of one tenant are paced. What comes with tokens of one tier passes the pacers of that tier, and
// those of the tenant, whose rate is that of the best tier that has connections. Guarded by the shard's lock.
type pacing struct {
	conns  int
	tiers  []*tierPacing
	tenant [directions]*pacer
}

type tierPacing struct {
	name   string
	conns  int
	rate   int // bytes per second; 0: unlimited
	pacers [directions]*pacer
}

// Pace makes c a connection whose bytes flow no faster than the tier's Bandwidth in either direction, together with those
// of the tenant's other connections, which have equal shares while they want more. Without a limit it is c itself, which
// then stays unlimited; a connection that is paced follows its tier from then on. The caller closes what is returned, and
// with it c; that ends a wait too.
func (l *Limiter) Pace(name, tier string, c relay.Conn) relay.Conn {
	if _, _, limited := l.rules.Load().bandwidth(name, tier); !limited {
		return c
	}
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	tier, rate, limited := l.rules.Load().bandwidth(name, tier) // again: from here on, a change of the rules finds it
	if !limited {
		return c
	}
	p := &pacedConn{Conn: c, closed: make(chan struct{})}
	t, err := l.use(s, name, now)
	if err != nil { // it holds no stream, so nobody counts it; it is not to go free for that
		p.pass(l.pacers(rate))
		p.release = func() {}
		return p
	}
	if t.pacing == nil {
		t.pacing = &pacing{tenant: l.pacers(rate)}
	}
	g := t.pacing.tier(tier, rate, l)
	g.conns++
	t.pacing.conns++
	t.pacing.rerate()
	p.pass(g.pacers, t.pacing.tenant)
	p.release = func() {
		now := l.now()
		s.mu.Lock()
		defer s.mu.Unlock()
		g.conns--
		t.pacing.conns--
		t.pacing.rerate()
		s.touch(t, now)
	}
	return p
}

// bandwidth is the rate of a tenant with a tier, in bytes per second, if it has a limit.
func (r *rules) bandwidth(tenant, tier string) (resolved string, rate int, limited bool) {
	tier, limits := r.tier(tier)
	return tier, limits.Bandwidth, limits.Bandwidth > 0 && r.tenant(tenant)&ofBandwidth == 0
}

func (l *Limiter) pacers(rate int) (p [directions]*pacer) {
	for d := range p {
		p[d] = newPacer(rate, &l.counts.bandwidth[d])
	}
	return p
}

func (p *pacing) tier(name string, rate int, l *Limiter) *tierPacing {
	for _, g := range p.tiers {
		if g.name == name {
			return g
		}
	}
	g := &tierPacing{name: name, rate: rate, pacers: l.pacers(rate)}
	p.tiers = append(p.tiers, g)
	return g
}

// follow takes over changed tiers, and forgets those that have no connections.
func (p *pacing) follow(r *rules, exempt set) {
	kept := p.tiers[:0]
	for _, g := range p.tiers {
		_, limits := r.tier(g.name)
		g.rate = limits.Bandwidth
		if exempt&ofBandwidth != 0 {
			g.rate = 0
		}
		for _, k := range g.pacers {
			k.setRate(g.rate)
		}
		if _, there := r.tiers[g.name]; there || g.conns > 0 {
			kept = append(kept, g)
		}
	}
	clear(p.tiers[len(kept):])
	p.tiers = kept
	p.rerate()
}

// rerate gives the tenant the rate of the best tier that has connections.
func (p *pacing) rerate() {
	best, unlimited := 0, false
	for _, g := range p.tiers {
		if g.conns > 0 {
			best, unlimited = max(best, g.rate), unlimited || g.rate == 0
		}
	}
	if best == 0 && !unlimited {
		return // no connections: what was used up stays so
	}
	if unlimited {
		best = 0
	}
	for _, k := range p.tenant {
		k.setRate(best)
	}
}

// pacedConn is a connection that pays for each byte. One goroutine reads and one writes at a time, as with any stream;
// Close may come at any time.
type pacedConn struct {
	relay.Conn
	ways    [directions][]way
	turn    [directions]sync.Mutex // a second reader or writer waits for its turn
	closed  chan struct{}
	over    atomic.Bool
	release func()
}

// way is a pacer that a direction passes.
type way struct {
	*pacer
	*flow
}

func (c *pacedConn) pass(stages ...[directions]*pacer) {
	for d := range c.ways {
		for _, s := range stages {
			c.ways[d] = append(c.ways[d], way{s[d], newFlow()})
		}
	}
}

// pay waits until n bytes may pass; an error means that the connection was closed meanwhile.
func (c *pacedConn) pay(direction, n int) error {
	c.turn[direction].Lock()
	defer c.turn[direction].Unlock()
	for _, w := range c.ways[direction] {
		if !w.take(w.flow, n, c.closed) {
			return net.ErrClosed
		}
	}
	return nil
}

// Piece is how many bytes are read at once.
func (c *pacedConn) Piece() int { return c.ways[fromBackend][0].piece() }

// Pay waits until n bytes, at most a Piece, that were read from the connection may be passed on. The error is
// net.ErrClosed.
func (c *pacedConn) Pay(n int) error { return c.pay(fromBackend, n) }

// Unpaced is the connection itself, to be read by whoever pays.
func (c *pacedConn) Unpaced() relay.Conn { return c.Conn }

// Read pays for what it has read before it returns, so that a connection that has nothing to say holds nothing of the rate.
func (c *pacedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.Piece())])
	if n > 0 {
		if closed := c.Pay(n); closed != nil {
			return 0, closed
		}
	}
	return n, err
}

// Write pays for each piece before it writes it.
func (c *pacedConn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := p[n:min(len(p), n+c.ways[toBackend][0].piece())]
		if err := c.pay(toBackend, len(piece)); err != nil {
			return n, err
		}
		put, err := c.Conn.Write(piece)
		n += put
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Close closes the connection, and ends waits.
func (c *pacedConn) Close() error {
	if c.over.Swap(true) {
		return c.Conn.Close()
	}
	close(c.closed)
	err := c.Conn.Close()
	c.release()
	return err
}
