package admin

import (
	"cmp"
	"context"
	"slices"
	"time"
)

const (
	replicasPatience = 2 * time.Second // for what the gateway knows of other replicas
	relayCap         = 1000            // relays in one answer
)

func (a *api) replicas(c *call, _ input) (any, error) { return a.cluster(c.r.Context()) }

// cluster is what the gateway knows of its replicas, in order. One that shares nothing is its only replica.
func (a *api) cluster(ctx context.Context) (v ReplicasView, err error) {
	if a.cfg.Replicas == nil {
		return alone(a.cfg.Diagnostics()), nil
	}
	ctx, cancel := context.WithTimeout(ctx, replicasPatience)
	defer cancel()
	if v, err = a.cfg.Replicas(ctx); err != nil {
		return v, err
	}
	v.Replicas, v.Relays = slices.Clone(v.Replicas), slices.Clone(v.Relays)
	for i := range v.Replicas {
		v.Replicas[i].Self = v.Replicas[i].ID == v.Self
	}
	slices.SortFunc(v.Replicas, func(a, b Replica) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	slices.SortFunc(v.Relays, func(a, b Relay) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Tunnel, b.Tunnel)) })
	v.RelaysTotal = len(v.Relays)
	v.Relays = v.Relays[:min(len(v.Relays), relayCap)]
	return v, nil
}

// alone is the view of a gateway that shares nothing.
func alone(d Diagnostics) ReplicasView {
	return ReplicasView{Self: d.Instance, Store: StoreView{Kind: d.Store, Up: d.StoreError == "", Since: d.Started, Error: d.StoreError},
		Replicas: List[Replica]{{ID: d.Instance, Name: d.Instance, Version: d.Version, Started: d.Started, Draining: d.State == "draining",
			Tunnels: d.Tunnels, Streams: d.Streams, Self: true}}}
}

// diagnostics is how the gateway is, with what it knows of its replicas, if it can tell.
func (a *api) diagnostics(c *call, _ input) (any, error) {
	d := a.cfg.Diagnostics()
	v := alone(d)
	if a.cfg.Replicas != nil {
		known, err := a.cluster(c.r.Context())
		if err != nil {
			return d, nil // it says that by itself
		}
		v = known
	}
	d.Store, d.StoreUp, d.StoreSince, d.StoreError = v.Store.Kind, v.Store.Up, v.Store.Since, v.Store.Error
	d.Replicas = ReplicaCounts{Known: len(v.Replicas)}
	for _, r := range v.Replicas {
		if r.Draining {
			d.Replicas.Draining++
		}
		d.Replicas.Tunnels += r.Tunnels
		d.Replicas.Streams += r.Streams
	}
	return d, nil
}

// drainProgress is how far a drain is. A gateway that does not tell says at least whether there is one.
func (a *api) drainProgress(*call, input) (any, error) {
	var v DrainView
	if a.cfg.DrainProgress != nil {
		v = a.cfg.DrainProgress()
	} else {
		d := a.cfg.Diagnostics()
		v = DrainView{Draining: d.State == "draining", Tunnels: d.Tunnels, Streams: d.Streams}
	}
	if v.Phase == "" {
		v.Phase = map[bool]DrainPhase{false: Serving, true: Finishing}[v.Draining]
	}
	return v, nil
}
