package app

import (
	"maps"
	"slices"
	"time"

	"fairlead/gateway/backend"
	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
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
	Name    string       `json:"name"`
	Address string       `json:"address"`
	Breaker string       `json:"breaker"` // closed, open or half-open: what the circuit does with the next call
	Mode    string       `json:"mode"`    // auto, or what an operator has decided: open or closed
	Pools   []PoolStatus `json:"pools"`   // a tenant each; none for passthrough
}

// PoolStatus describes one tenant's SSH connections to one backend.
type PoolStatus struct {
	Tenant      string             `json:"tenant"`
	Connections []ConnectionStatus `json:"connections"` // oldest first
	Dialing     int                `json:"dialing"`     // connections being made
	Channels    int                `json:"channels"`    // open, or about to be
	Waiting     int                `json:"waiting"`     // for a channel
	Reused      uint64             `json:"reused"`      // channels opened on a connection that had carried one before
}

// ConnectionStatus describes one SSH connection.
type ConnectionStatus struct {
	ID       string `json:"id"`     // the gateway's own TCP address, by which the backend's log knows it
	Server   string `json:"server"` // version line
	AgeMS    int64  `json:"age_ms"`
	Channels int    `json:"channels"`
	Opened   uint64 `json:"opened"`  // channels so far
	Retired  bool   `json:"retired"` // gives no new channels
}

func (a *App) backendStatus() []BackendStatus {
	pools := map[string][]PoolStatus{}
	for _, p := range a.backends.Stats() {
		pools[p.Backend] = append(pools[p.Backend], poolStatus(p))
	}
	list := []BackendStatus{}
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Backends)) {
		list = append(list, BackendStatus{Name: name, Address: a.cfg.Backends[name].Address, Breaker: string(a.breaker.State(name)),
			Mode: string(a.breaker.Mode(name)), Pools: append([]PoolStatus{}, pools[name]...)})
	}
	return list
}

func poolStatus(p backend.PoolStats) PoolStatus {
	s := PoolStatus{Tenant: p.Tenant, Connections: []ConnectionStatus{}, Dialing: p.Dialing, Channels: p.Channels, Waiting: p.Waiting, Reused: p.Reused}
	for _, c := range p.Connections {
		s.Connections = append(s.Connections, ConnectionStatus{ID: c.ID, Server: c.Peer.Version, AgeMS: c.Age.Milliseconds(), Channels: c.Channels, Opened: c.Opened, Retired: c.Retired})
	}
	return s
}

// setBreaker overrules a backend's circuit, or gives it back to itself.
func (a *App) setBreaker(name, mode string) error {
	if _, ok := a.cfg.Backends[name]; !ok {
		return errs.New(errs.NotFound, "there is no backend %.64q", name)
	}
	if err := a.breaker.SetMode(name, breaker.Mode(mode)); err != nil {
		return err
	}
	a.log.Info("breaker overruled", logging.FieldBackend, name, "mode", mode)
	return nil
}
