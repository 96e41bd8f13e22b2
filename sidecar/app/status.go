package app

import (
	"fairlead/sidecar/status"
	"fairlead/sidecar/tunnel"
)

// Status is what GET /api/status answers.
type Status = status.Status

// Status describes the sidecar.
func (a *App) Status() Status {
	pool := a.pool.Status()
	st := Status{Instance: a.opts.Instance, Version: a.opts.Version, Started: a.started, Profile: a.cfg.Profile, State: string(pool.State), Since: pool.Since,
		Tunnels: []status.Tunnel{}, Queue: status.Queue{Length: a.queue.Len(), Size: a.queue.Size()}, Listeners: []status.Listener{}, Endpoints: []status.Endpoint{}, Events: []status.Event{}}
	err := a.ready()
	st.Ready = err == nil
	if err != nil {
		st.NotReady = err.Error()
	}
	for _, t := range pool.Tunnels {
		st.Tunnels = append(st.Tunnels, tunnelStatus(t))
	}
	for _, e := range pool.Events {
		st.Events = append(st.Events, status.Event{Time: e.Time, Tunnel: e.Tunnel, State: string(e.State), Attempt: e.Attempt, DelayMS: e.DelayMS, Endpoint: e.Endpoint, Code: e.Code, Reason: e.Reason})
	}
	for _, l := range a.listeners {
		s := l.Status()
		st.Listeners = append(st.Listeners, status.Listener{Name: s.Name, Listen: s.Listen, Route: s.Route, Priority: s.Priority, Active: s.Active, Total: s.Total})
	}
	st.Quality, st.RTT = quality(pool)
	return st
}

func tunnelStatus(t tunnel.TunnelStatus) status.Tunnel {
	return status.Tunnel{Slot: t.Slot, ID: t.ID, Endpoint: t.Endpoint, Replica: t.Replica, State: string(t.State), Since: t.Since, RTT: t.RTT, Streams: t.Streams, Resumes: t.Resumes,
		Sent: t.Sent, Received: t.Received, Replayed: t.Replayed, Error: t.Error}
}

// quality grades the path by the least round trip of a connected tunnel, in milliseconds.
func quality(st tunnel.Status) (grade string, rtt float64) {
	found := false
	for _, t := range st.Tunnels {
		if t.State == tunnel.Connected && (!found || t.RTT < rtt) {
			rtt, found = t.RTT, true
		}
	}
	switch {
	case !found:
		return "none", 0
	case rtt < 50:
		return "excellent", rtt
	case rtt < 150:
		return "good", rtt
	case rtt < 400:
		return "fair", rtt
	}
	return "poor", rtt
}
