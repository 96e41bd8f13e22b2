package app

import (
	"context"
	"slices"
	"time"

	"fairlead/gateway/admin"
	"fairlead/gateway/session"
	"fairlead/gateway/store"
)

// What replicas are and do together, in the words of the admin API.

func (a *App) replicasView(ctx context.Context) (admin.ReplicasView, error) {
	health, c := a.store.Health(), a.sessions.Counts()
	v := admin.ReplicasView{Self: a.self.ID, Store: admin.StoreView{Kind: a.config().Store.Kind, Up: health.Up, Since: health.Since, Error: health.Error},
		Leases: admin.LeaseCounts{Held: c.Tunnels, Lost: a.sessions.LeasesLost()}}
	v.Resumes.Same, v.Resumes.Relayed, v.Resumes.Refused, v.Resumes.Lost = a.sessions.Resumes()
	for _, r := range a.directory(ctx) {
		one := admin.Replica{ID: r.ID, Name: r.Name, Address: r.Address, Version: r.Version, Started: r.Started, Draining: r.Draining, Tunnels: r.Tunnels, Streams: r.Streams}
		if r.ID == a.self.ID { // what is known here is newer
			one.Draining, one.Tunnels, one.Streams = a.stopping.Load(), c.Tunnels, c.Streams
		}
		v.Replicas = append(v.Replicas, one)
	}
	if a.peer != nil {
		for _, r := range a.peer.Relays() {
			v.Relays = append(v.Relays, admin.Relay{Tunnel: r.Tunnel, Owner: r.Owner, Client: r.Client, Since: r.Since, Sent: r.Sent, Received: r.Received})
		}
	}
	return v, nil
}

// directory lists the replicas, this one in any case: as they are, or as they were known last.
func (a *App) directory(ctx context.Context) []store.Replica {
	list, err := a.store.Replicas(ctx)
	if known := a.known.Load(); err != nil && known != nil {
		list = *known
	}
	if !slices.ContainsFunc(list, func(r store.Replica) bool { return r.ID == a.self.ID }) {
		list = append(slices.Clone(list), a.self)
	}
	return list
}

func (a *App) drainProgress() admin.DrainView {
	p := a.sessions.Progress()
	if p.Since.IsZero() {
		c := a.sessions.Counts()
		return admin.DrainView{Draining: a.stopping.Load(), Tunnels: c.Tunnels, Streams: c.Streams}
	}
	return admin.DrainView{Draining: true, Reason: a.why.Load().(string), Since: p.Since, Deadline: p.Deadline, Tunnels: p.Tunnels, Streams: p.Streams,
		Moved: p.Moved, Ended: p.Ended, Phase: phase(p, time.Now(), a.drained.Load())}
}

// phase is how far a drain is that is not done with, or is.
func phase(p session.Progress, now time.Time, done bool) admin.DrainPhase {
	switch {
	case done:
		return admin.Stopping
	case !now.Before(p.Deadline):
		return admin.Ending
	case now.Before(p.Since.Add(p.Deadline.Sub(p.Since) / drainSpread)):
		return admin.Moving
	}
	return admin.Finishing
}
