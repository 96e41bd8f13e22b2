package app

import (
	"maps"
	"slices"
	"time"

	"fairlead/gateway/backend"
)

// Diagnostics is what GET /api/tunnel/diagnostics answers.
type Diagnostics struct {
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	State    string    `json:"state"` // serving or draining
	Tunnels  int       `json:"tunnels"`
	Detached int       `json:"tunnels_detached"`
	Streams  int       `json:"streams"`
	Store    string    `json:"store"`
	Backends any       `json:"backends"`
}

func (a *App) diagnostics() Diagnostics {
	c := a.sessions.Counts()
	d := Diagnostics{Instance: a.opts.Instance, Version: a.opts.Version, Started: a.started, State: "serving", Tunnels: c.Tunnels, Detached: c.Detached,
		Streams: c.Streams, Store: a.cfg.Store.Kind, Backends: a.backendStatus()}
	if a.stopping.Load() {
		d.State = "draining"
	}
	return d
}

// BackendStatus describes one backend.
type BackendStatus struct {
	Name    string              `json:"name"`
	Address string              `json:"address"`
	Breaker string              `json:"breaker"`
	Pools   []backend.PoolStats `json:"pools"` // a tenant each; none for passthrough
}

func (a *App) backendStatus() []BackendStatus {
	pools := map[string][]backend.PoolStats{}
	for _, p := range a.backends.Stats() {
		pools[p.Backend] = append(pools[p.Backend], p)
	}
	list := []BackendStatus{}
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Backends)) {
		list = append(list, BackendStatus{Name: name, Address: a.cfg.Backends[name].Address, Breaker: string(a.breaker.State(name)), Pools: pools[name]})
	}
	return list
}
