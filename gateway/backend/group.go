package backend

import (
	"slices"
	"time"
)

// group is all pools of one tenant to one backend. There is one pool in it, unless the backend has an Identity: then the
// connections of all of them together are bounded. All of it is guarded by Set.mu.
type group struct {
	key   groupKey
	pools []*pool
}

type groupKey struct{ tenant, backend string }

func (s *Set) joinGroupLocked(p *pool) {
	key := groupKey{p.key.tenant, p.key.backend}
	g := s.groups[key]
	if g == nil {
		g = &group{key: key}
		s.groups[key] = g
	}
	g.pools = append(g.pools, p)
	p.group = g
}

func (p *pool) leaveGroupLocked() {
	g := p.group
	g.pools = slices.DeleteFunc(g.pools, func(other *pool) bool { return other == p })
	if len(g.pools) == 0 {
		delete(p.set.groups, g.key)
	}
}

// sizeLocked is how many connections there are, or will be.
func (g *group) sizeLocked() int {
	n := 0
	for _, p := range g.pools {
		n += len(p.live) + len(p.retired) + p.dialing + p.outdated
	}
	return n
}

// waitingLocked is how many of the tenant wait for the backend.
func (g *group) waitingLocked() int {
	n := 0
	for _, p := range g.pools {
		n += p.waiting.Len()
	}
	return n
}

// roomLocked reports whether one more connection may be made. When there are too many already, one that is idle and
// belongs to another pool has to go.
func (p *pool) roomLocked() bool {
	if p.b.Identity == nil || p.group.sizeLocked() < p.set.poolConfig().TenantConnections {
		return true
	}
	var idlest *link
	for _, other := range p.group.pools {
		for _, l := range other.live {
			if other != p && l.channels == 0 && (idlest == nil || l.idleSince.Before(idlest.idleSince)) {
				idlest = l
			}
		}
	}
	if idlest == nil {
		return false
	}
	idlest.cutLocked(reasonEvicted)
	idlest.pool.forgetLocked()
	return true
}

// serveLocked serves p, which has just got a slot or lost a connection, and then those of its group who wait for room,
// longest waiting first.
func (g *group) serveLocked(p *pool) {
	p.serveLocked()
	if len(g.pools) == 1 {
		return
	}
	var waiting []*pool
	for _, other := range g.pools {
		if other != p && other.waiting.Len() > 0 {
			waiting = append(waiting, other)
		}
	}
	slices.SortFunc(waiting, func(a, b *pool) int { return a.oldestLocked().Compare(b.oldestLocked()) })
	for _, other := range waiting {
		other.serveLocked()
	}
}

// oldestLocked is since when the first who waits has waited.
func (p *pool) oldestLocked() time.Time { return p.waiting.Front().Value.(*waiter).since }
