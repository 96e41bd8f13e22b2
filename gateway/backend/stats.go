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
	KeyID       string            // in the certificates of its connections; empty: the backend has no Identity
	Principals  []string          // likewise
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
	Reason   string // why it is retired
}

// Stats lists all pools by backend and tenant. Pools without connections and callers do not exist.
func (s *Set) Stats() []PoolStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	stats := make([]PoolStats, 0, len(s.pools))
	for _, p := range s.pools {
		one := PoolStats{Backend: p.b.Name, Tenant: p.tenant, KeyID: p.names.keyID, Principals: p.names.principals, Dialing: p.dialing, Channels: p.channels, Waiting: p.waiting.Len(), Reused: p.reused}
		for _, l := range p.all() {
			one.Connections = append(one.Connections, ConnectionStats{ID: l.id, Peer: l.peer, Age: now.Sub(l.made), Channels: l.channels, Opened: l.opened, Retired: l.retired, Reason: l.reason})
		}
		slices.SortFunc(one.Connections, func(a, b ConnectionStats) int { return cmp.Compare(b.Age, a.Age) })
		stats = append(stats, one)
	}
	slices.SortFunc(stats, func(a, b PoolStats) int {
		return cmp.Or(cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.KeyID, b.KeyID), slices.Compare(a.Principals, b.Principals))
	})
	return stats
}

// BackendStats is the state of one backend.
type BackendStats struct {
	Name    string
	Address string
	Checked bool // Health says something
	Health  HealthStats
	Waiting int // opens and SSH connections that wait for a turn
	Dialing int // connections being made
}

// Backends lists all backends by name.
func (s *Set) Backends() []BackendStats {
	var list []BackendStats
	for _, b := range s.table.Load().backends {
		one := BackendStats{Name: b.Name, Address: b.Address}
		one.Health, one.Checked = b.health.read()
		for _, q := range []*turns{b.dials, b.logins} {
			st := q.stats()
			one.Waiting, one.Dialing = one.Waiting+st.Waiting, one.Dialing+st.Running
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b BackendStats) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
