package app

import (
	"fairlead/sidecar/spool"
	"fairlead/sidecar/status"
	"fairlead/sidecar/tunnel"
)

// Status is what GET /api/status answers.
type Status = status.Status

// Status describes the sidecar. Its rates are the admin API's to fill in.
func (a *App) Status() Status {
	pool, queue, cfg := a.pool.Status(), a.queue.Status(), a.config()
	st := Status{Instance: a.opts.Instance, Version: a.opts.Version, Started: a.started, Profile: cfg.Profile, State: string(pool.State), Since: pool.Since,
		Tunnels: []status.Tunnel{}, Listeners: []status.Listener{}, Endpoints: []status.Endpoint{}, Events: []status.Event{},
		Queue: status.Queue{Length: queue.Length, Size: queue.Size, Pressure: queue.Pressure, Waiting: status.Waiting(queue.Waiting), Refused: queue.Refused, Expired: queue.Expired},
		RTT:   pool.RTT, Loss: pool.Loss, Quality: string(pool.Quality), Rates: status.Rates(pool.Rates),
		Heartbeat: status.Heartbeat(pool.Heartbeat), Shutdown: a.stopping.status()}
	if err := a.ready(); err != nil {
		st.NotReady = err.Error()
	} else {
		st.Ready = true
	}
	for _, t := range pool.Tunnels {
		st.Tunnels = append(st.Tunnels, tunnelStatus(t))
	}
	for _, e := range pool.Events {
		st.Events = append(st.Events, status.Event{Time: e.Time, Tunnel: e.Tunnel, State: string(e.State), Attempt: e.Attempt, DelayMS: e.DelayMS, Endpoint: e.Endpoint, Code: e.Code, Reason: e.Reason})
	}
	for _, e := range pool.Endpoints {
		st.Endpoints = append(st.Endpoints, status.Endpoint{URL: e.URL, Weight: e.Weight, State: string(e.State), Active: e.Active, Since: e.Since, Error: e.Error})
	}
	for _, l := range a.bound() {
		st.Listeners = append(st.Listeners, status.Listener(l.Status()))
	}
	if a.spool != nil {
		st.Spool = spoolStatus(a.spool.Status())
	}
	if st.Shutdown != nil {
		st.Shutdown.Connections = a.connections()
		if st.Spool != nil {
			st.Shutdown.SpoolBytes = st.Spool.Bytes
		}
	}
	return st
}

func (a *App) bound() []bound {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]bound{}, a.listeners...)
}

func tunnelStatus(t tunnel.TunnelStatus) status.Tunnel {
	return status.Tunnel{Slot: t.Slot, ID: t.ID, Endpoint: t.Endpoint, Replica: t.Replica, Via: t.Via, State: string(t.State), Since: t.Since, RTT: t.RTT, Loss: t.Loss, Quality: string(t.Quality),
		Streams: t.Streams, Resumes: t.Resumes, Sent: t.Sent, Received: t.Received, Replayed: t.Replayed, Error: t.Error}
}

func spoolStatus(s spool.Status) *status.Spool {
	return &status.Spool{Connections: s.Connections, Bytes: s.Bytes, Size: s.Size, Oldest: s.Oldest, Delivering: s.Delivering, Delivered: s.Delivered, Dropped: s.Dropped,
		Quarantined: uint64(s.Quarantined), Error: s.Error}
}
