package backend

import (
	"container/list"
	"context"
	"errors"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// poolKey says whose pool it is: this is what keeps tenants apart.
type poolKey struct{ tenant, backend string }

// pool is the SSH connections of one tenant to one backend. All fields are guarded by Set.mu. It exists as long as it has
// a connection, a dial, a channel or somebody waiting.
type pool struct {
	set    *Set
	b      *remote
	tenant string

	live     []*link            // give channels, oldest first
	retired  map[*link]struct{} // too old; closed when their channels are gone
	dialing  int
	channels int       // slots in use, of all connections
	waiting  list.List // of *waiter, first come first served
	reused   uint64    // channels that found an existing connection
}

// waiter is somebody who needs a slot.
type waiter struct {
	ready chan grant // buffered for the one grant
}

// grant is a slot, or the reason why there is none.
type grant struct {
	link *link
	err  error
}

func (s *Set) poolLocked(b *remote, tenant string) *pool {
	key := poolKey{tenant, b.Name}
	p := s.pools[key]
	if p == nil {
		p = &pool{set: s, b: b, tenant: tenant, retired: make(map[*link]struct{})}
		s.pools[key] = p
	}
	return p
}

// acquire takes a slot on a connection, dialing one when needed, and waits as long as ctx allows.
func (s *Set) acquire(ctx context.Context, b *remote, tenant string) (*link, error) {
	w := &waiter{ready: make(chan grant, 1)}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	p := s.poolLocked(b, tenant)
	place := p.waiting.PushBack(w)
	p.serveLocked()
	s.mu.Unlock()

	select {
	case g := <-w.ready:
		return g.link, g.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case g := <-w.ready: // it came at the same moment
		if g.err != nil {
			return nil, g.err
		}
		g.link.releaseLocked()
	default:
		p.waiting.Remove(place)
		defer p.forgetLocked()
	}
	return nil, p.tiredLocked(ctx)
}

// tiredLocked says what a waiter whose context ended had waited for.
func (p *pool) tiredLocked(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return p.set.ended(ctx, p.b, "waiting for an SSH connection")
	}
	if p.dialing == 0 || p.channels >= p.capacity() {
		return errs.Wrap(errs.PoolExhausted, ctx.Err(), "all SSH connections to backend %q are full: ssh_pool.connections is %d with ssh_pool.channels_per_connection %d, and %d channels are open",
			p.b.Name, p.set.pool.Connections, p.set.pool.ChannelsPerConnection, p.channels)
	}
	return errs.Wrap(errs.BackendTimeout, ctx.Err(), "backend %q (%s) did not finish the SSH handshake while the caller waited", p.b.Name, p.b.Address)
}

// capacity is how many channels there may be. Those of retired connections count, so that their number is bounded too.
func (p *pool) capacity() int { return p.set.pool.ChannelsPerConnection * p.set.pool.Connections }

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
			return
		}
		w := p.waiting.Remove(p.waiting.Front()).(*waiter)
		l.channels++
		p.channels++
		w.ready <- grant{link: l}
	}
}

// freeLocked prefers the oldest connection, so that the others can become idle.
func (p *pool) freeLocked() *link {
	if p.channels >= p.capacity() {
		return nil
	}
	for _, l := range p.live {
		if l.channels < p.set.pool.ChannelsPerConnection {
			return l
		}
	}
	return nil
}

// dialLocked starts as many dials as those who wait can fill: those who come first together share one.
func (p *pool) dialLocked() {
	for p.waiting.Len() > p.dialing*p.set.pool.ChannelsPerConnection &&
		len(p.live)+p.dialing < p.set.pool.Connections && p.channels < p.capacity() {
		p.dialing++
		if !p.set.spawnLocked(p.grow) {
			p.dialing--
			return
		}
	}
}

// grow adds a connection. It belongs to nobody who waits: when they leave, it goes on for the next.
func (p *pool) grow() {
	s := p.set
	ses, err := s.login(p.b)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.dialing--
	if err == nil {
		l := newLink(p, ses)
		p.live = append(p.live, l)
		l.startLocked()
		s.log.Info("an SSH connection to a backend is up", append(fields(p.b, p.tenant), "connection", l.id,
			logging.FieldVersion, ses.peer.Version, "key_exchange", ses.peer.KeyExchange, "host_key", ses.peer.HostKey, "cipher", ses.peer.Cipher)...)
	} else if p.failLocked(err, s.pool.ChannelsPerConnection) == 0 {
		s.log.Warn("an SSH connection to a backend failed, and nobody waited for it any more",
			append(fields(p.b, p.tenant), logging.FieldCode, errs.CodeOf(err).String(), logging.FieldError, err.Error())...)
	}
	p.serveLocked()
	p.forgetLocked()
}

// login dials through the breaker, with a bounded number of handshakes at a time: sshd drops connections at random when
// too many have not logged in yet.
func (s *Set) login(b *remote) (ses *session, err error) {
	select {
	case b.handshakes <- struct{}{}:
		defer func() { <-b.handshakes }()
	case <-s.base.Done():
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	err = s.guarded(s.base, b, func(ctx context.Context) (err error) {
		ses, err = s.dialSSH(ctx, b)
		return err
	})
	return ses, err
}

// failLocked tells an error to the first n who wait, each a copy of their own, and returns to how many.
func (p *pool) failLocked(err error, n int) int {
	told := 0
	for ; told < n && p.waiting.Len() > 0; told++ {
		w := p.waiting.Remove(p.waiting.Front()).(*waiter)
		own := *errs.From(err)
		w.ready <- grant{err: &own}
	}
	return told
}

// removeLocked takes a connection out of the pool; its channels give their slots back as they end.
func (p *pool) removeLocked(l *link) {
	delete(p.retired, l)
	for i, other := range p.live {
		if other == l {
			p.live = append(p.live[:i], p.live[i+1:]...)
			break
		}
	}
	p.serveLocked()
	p.forgetLocked()
}

// forgetLocked drops the pool when nothing is left of it: tenants come and go.
func (p *pool) forgetLocked() {
	if len(p.live)+len(p.retired)+p.dialing+p.channels+p.waiting.Len() == 0 {
		if key := (poolKey{p.tenant, p.b.Name}); p.set.pools[key] == p {
			delete(p.set.pools, key)
		}
	}
}
