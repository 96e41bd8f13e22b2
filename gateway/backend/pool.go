package backend

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// poolKey says whose pool it is: this is what keeps tenants apart, and callers of one tenant whose certificates differ.
type poolKey struct{ tenant, backend, names string }

// pool is the SSH connections of one tenant to one backend, for backends with an Identity those with the same names in
// their certificates. All fields but the first four are guarded by Set.mu. It exists as long as it has a connection, a
// dial, a channel or somebody waiting, or is kept warm.
type pool struct {
	set    *Set
	key    poolKey
	tenant string
	names  names // of its certificates

	b        *remote // as it was when somebody last asked
	who      Caller  // who last asked
	stale    bool    // the backend has been changed or removed since
	group    *group
	live     []*link            // give channels, oldest first
	retired  map[*link]struct{} // give none any more; closed when their channels are gone
	dialing  int
	outdated int       // dials from before the backend was changed; nobody waits for them
	epoch    int       // how often it was changed
	channels int       // slots in use, of all connections
	waiting  list.List // of *waiter, first come first served
	reused   uint64    // channels that found an existing connection
	warmth   warmth
}

// waiter is somebody who needs a slot.
type waiter struct {
	since time.Time
	ready chan grant // buffered for the one grant
}

// grant is a slot, or the reason why there is none.
type grant struct {
	link *link
	err  error
	dial *Waits // where the time of the connection went, when it was just made or could not be
}

// errReconfigured tells who waits to ask again: the backend is another one now.
var errReconfigured = errors.New("the backend has been configured anew")

// poolLocked finds or makes a pool, for somebody who asks for it now.
func (s *Set) poolLocked(b *remote, who Caller, n names) *pool {
	key := poolKey{who.Tenant, b.Name, n.key()}
	p := s.pools[key]
	if p == nil {
		p = &pool{set: s, key: key, tenant: who.Tenant, names: n, retired: make(map[*link]struct{})}
		s.pools[key] = p
		s.joinGroupLocked(p)
	}
	p.b, p.who, p.stale = b, who, false
	return p
}

// acquire takes a slot on a connection, dialing one when needed, and waits as long as ctx allows.
func (s *Set) acquire(ctx context.Context, backend string, who Caller) (*link, error) {
	for {
		b, ok := s.table.Load().backends[backend]
		if !ok {
			return nil, errs.New(errs.RouteUnknown, "backend %q is no longer configured", backend)
		}
		n, err := b.names(who)
		if err != nil {
			return nil, err
		}
		if l, err := s.acquireOf(ctx, b, who, n); err != errReconfigured {
			return l, err
		}
	}
}

func (s *Set) acquireOf(ctx context.Context, b *remote, who Caller, n names) (*link, error) {
	w := &waiter{since: time.Now(), ready: make(chan grant, 1)}
	var g grant
	defer func() { waitsOf(ctx).slotted(time.Since(w.since), g.dial) }()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	if s.table.Load().backends[b.Name] != b {
		s.mu.Unlock()
		return nil, errReconfigured
	}
	p := s.poolLocked(b, who, n)
	if err := p.fullLocked(); err != nil {
		p.forgetLocked()
		s.mu.Unlock()
		return nil, err
	}
	place := p.waiting.PushBack(w)
	p.serveLocked()
	s.mu.Unlock()

	select {
	case g = <-w.ready:
		return g.link, g.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case g = <-w.ready: // it came at the same moment
		if g.err != nil && g.err != errReconfigured {
			return nil, g.err
		}
		if g.err == nil {
			g.link.releaseLocked()
		}
	default:
		p.waiting.Remove(place)
		defer p.forgetLocked()
	}
	return nil, p.tiredLocked(ctx)
}

// fullLocked refuses one more who waits when too many of the tenant do already.
func (p *pool) fullLocked() error {
	most, waiting := p.b.logins.each, p.group.waitingLocked()
	if waiting < most {
		return nil
	}
	p.b.logins.counts.refused.Inc()
	return errs.New(errs.DialQueueFull, "%d opens of tenant %q wait for an SSH connection to backend %q already: backends.%s.dialing.queue_per_tenant is %d",
		waiting, p.tenant, p.b.Name, p.b.Name, most).Within(most, 0, 0).After(time.Second)
}

// tiredLocked says what a waiter whose context ended had waited for.
func (p *pool) tiredLocked(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return p.set.ended(ctx, p.b, "waiting for an SSH connection")
	}
	cfg := p.set.poolConfig()
	if p.dialing == 0 && p.b.Identity != nil && p.group.sizeLocked() >= cfg.TenantConnections {
		return errs.Wrap(errs.PoolExhausted, ctx.Err(), "all SSH connections of the tenant to backend %q carry streams of callers with other certificates: ssh_pool.connections_per_tenant is %d",
			p.b.Name, cfg.TenantConnections)
	}
	if p.dialing == 0 || p.channels >= p.capacity() {
		return errs.Wrap(errs.PoolExhausted, ctx.Err(), "all SSH connections to backend %q are full: ssh_pool.connections is %d with ssh_pool.channels_per_connection %d, and %d channels are open",
			p.b.Name, cfg.Connections, cfg.ChannelsPerConnection, p.channels)
	}
	if mine := p.b.logins.waitingOf(p.tenant); mine >= p.dialing {
		return errs.Wrap(errs.OpenTimeout, ctx.Err(), "the open waited for an SSH connection to backend %q, and that for its turn: %d of its tenant are in the queue, and backends.%s.dialing.handshakes is %d",
			p.b.Name, mine, p.b.Name, p.b.logins.limit)
	}
	return errs.Wrap(errs.BackendTimeout, ctx.Err(), "backend %q (%s) did not finish the SSH handshake while the caller waited", p.b.Name, p.b.Address)
}

// capacity is how many channels there may be. Those of retired connections count, so that their number is bounded too.
func (p *pool) capacity() int {
	cfg := p.set.poolConfig()
	return cfg.ChannelsPerConnection * cfg.Connections
}

func (p *pool) all() []*link {
	links := append([]*link(nil), p.live...)
	for l := range p.retired {
		links = append(links, l)
	}
	return links
}

// serveLocked gives free slots to those who wait, in their order, and dials for the others.
func (p *pool) serveLocked() {
	for p.waiting.Len() > 0 {
		l := p.freeLocked()
		if l == nil {
			p.dialLocked()
			break
		}
		w := p.waiting.Remove(p.waiting.Front()).(*waiter)
		l.channels++
		p.channels++
		l.countLocked()
		p.warmth.used = time.Now()
		w.ready <- grant{link: l, dial: l.fresh()}
	}
	p.warmLocked()
}

// freeLocked prefers the oldest connection, so that the others can become idle.
func (p *pool) freeLocked() *link {
	if p.channels >= p.capacity() {
		return nil
	}
	for _, l := range p.live {
		if l.hasRoomLocked() {
			return l
		}
	}
	return nil
}

// dialLocked starts as many dials as those who wait can fill: those who come first together share one.
func (p *pool) dialLocked() {
	cfg := p.set.poolConfig()
	for p.waiting.Len() > p.dialing*cfg.ChannelsPerConnection &&
		len(p.live)+p.dialing < cfg.Connections && p.channels < p.capacity() {
		if !p.roomLocked() || !p.startDialLocked() {
			return
		}
	}
}

// startDialLocked makes a connection in the background; false: the Set is being closed.
func (p *pool) startDialLocked() bool {
	b, e, epoch := p.b, errand{who: p.who, names: p.names}, p.epoch
	p.dialing++
	if !p.set.spawnLocked(func() { p.grow(b, e, epoch) }) {
		p.dialing--
		return false
	}
	return true
}

// grow adds a connection. It belongs to nobody who waits: when they leave, it goes on for the next.
func (p *pool) grow(b *remote, e errand, epoch int) {
	s := p.set
	ses, waits, err := s.login(b, e)
	s.mu.Lock()
	defer s.mu.Unlock()
	current := epoch == p.epoch
	if current {
		p.dialing--
	} else {
		p.outdated--
	}
	switch {
	case err == nil:
		l := newLink(p, b, ses)
		p.live = append(p.live, l)
		l.startLocked()
		p.warmth.succeeded()
		s.log.Info("an SSH connection to a backend is up", append(fields(b, p.tenant), "connection", l.id,
			logging.FieldVersion, ses.peer.Version, "key_exchange", ses.peer.KeyExchange, "host_key", ses.peer.HostKey, "cipher", ses.peer.Cipher)...)
		if !current {
			l.endLocked(reasonReconfigured)
		}
	case !current: // what went wrong was with what is not configured any more
	default:
		p.warmth.failed(err)
		if p.failLocked(err, waits, s.poolConfig().ChannelsPerConnection) == 0 {
			s.log.Warn("an SSH connection to a backend failed, and nobody waited for it any more",
				append(fields(b, p.tenant), logging.FieldCode, errs.CodeOf(err).String(), logging.FieldError, err.Error())...)
		}
	}
	p.group.serveLocked(p)
	p.forgetLocked()
}

// failLocked tells an error to the first n who wait, each a copy of their own, and returns to how many. dial is where the
// time went of the dial that failed, if one has.
func (p *pool) failLocked(err error, dial *Waits, n int) int {
	told := 0
	for ; told < n && p.waiting.Len() > 0; told++ {
		w := p.waiting.Remove(p.waiting.Front()).(*waiter)
		own := *errs.From(err)
		w.ready <- grant{err: &own, dial: dial}
	}
	return told
}

// sendBackLocked lets all who wait ask again.
func (p *pool) sendBackLocked() {
	for p.waiting.Len() > 0 {
		p.waiting.Remove(p.waiting.Front()).(*waiter).ready <- grant{err: errReconfigured}
	}
}

// detachLocked takes a connection out of the pool; its channels give their slots back as they end.
func (p *pool) detachLocked(l *link) {
	delete(p.retired, l)
	p.live = slices.DeleteFunc(p.live, func(other *link) bool { return other == l })
	l.countLocked()
}

// forgetLocked drops the pool when nothing is left of it: tenants come and go.
func (p *pool) forgetLocked() {
	if len(p.live)+len(p.retired)+p.dialing+p.outdated+p.channels+p.waiting.Len() == 0 && !p.warmth.kept && p.set.pools[p.key] == p {
		delete(p.set.pools, p.key)
		p.leaveGroupLocked()
	}
}
