package backend

import (
	"cmp"
	"slices"
	"time"
)

// PoolStats is the state of one tenant's SSH connections to one backend.
type PoolStats struct {
	Backend     string
	Tenant      string
	Connections []ConnectionStats // oldest first
	Dialing     int               // connections being made
	Channels    int               // open, or about to be
	Waiting     int               // who wait for a slot
	Reused      uint64            // channels opened on a connection that had carried one before
}

// ConnectionStats is the state of one SSH connection.
type ConnectionStats struct {
	ID       string // the gateway's own TCP address, by which the backend's log knows it
	Peer     Peer
	Age      time.Duration
	Channels int
	Opened   uint64 // channels so far
	Retired  bool   // gives no new channels
}

// Stats lists all pools by backend and tenant. Pools without connections and callers do not exist.
func (s *Set) Stats() []PoolStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	stats := make([]PoolStats, 0, len(s.pools))
	for _, p := range s.pools {
		one := PoolStats{Backend: p.b.Name, Tenant: p.tenant, Dialing: p.dialing, Channels: p.channels, Waiting: p.waiting.Len(), Reused: p.reused}
		for _, l := range p.all() {
			one.Connections = append(one.Connections, ConnectionStats{ID: l.id, Peer: l.peer, Age: now.Sub(l.made), Channels: l.channels, Opened: l.opened, Retired: l.retired})
		}
		slices.SortFunc(one.Connections, func(a, b ConnectionStats) int { return cmp.Compare(b.Age, a.Age) })
		stats = append(stats, one)
	}
	slices.SortFunc(stats, func(a, b PoolStats) int {
		return cmp.Or(cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Tenant, b.Tenant))
	})
	return stats
}
