package app

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	"fairlead/gateway/admin"
	"fairlead/gateway/backend"
	"fairlead/gateway/config"
	"fairlead/gateway/session"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
)

// What the gateway is and does, in the words of the admin API.

func (a *App) diagnostics() admin.Diagnostics {
	c, level := a.sessions.Counts(), a.pressure.Level()
	d := admin.Diagnostics{Instance: a.opts.Instance, Version: a.opts.Version, Started: a.started, State: a.state(), Tunnels: c.Tunnels, Detached: c.Detached,
		Streams: c.Streams, Store: a.config().Store.Kind, Audit: a.auditStatus(),
		Pressure: admin.Pressure{Level: int(level), Shedding: []string{"none", "low", "normal", "all"}[level], Retained: a.memory.Used()},
		Limits:   admin.LimitStatus{Tenants: a.limits.Tracked(), Tiers: len(a.config().Tiers)},
		Process:  admin.ProcessNow(a.started), Revocations: len(a.revocations.List()), Backends: a.backendStatus()}
	for _, i := range a.auth.Status() {
		s := admin.IssuerStatus{Issuer: i.Issuer, Source: i.Source, Keys: i.Keys, Fetched: i.Fetched, Error: i.Error}
		if i.Review != nil {
			s.Review = i.Review.Error
		}
		d.Issuers = append(d.Issuers, s)
	}
	return d
}

func (a *App) state() string {
	if a.stopping.Load() {
		return "draining"
	}
	return "serving"
}

func (a *App) auditStatus() admin.AuditStatus {
	if a.trail == nil {
		return admin.AuditStatus{}
	}
	s := a.trail.Status()
	return admin.AuditStatus{Enabled: true, File: s.File, OnFailure: a.config().Audit.OnFailure, Sequence: s.Sequence, Lost: s.Lost, Failing: !s.FailingSince.IsZero(),
		Error: s.Error, Signed: s.SignedHead.Time}
}

func (a *App) tunnels() iter.Seq[admin.Tunnel] {
	return each(a.sessions.List(), func(t session.Info) admin.Tunnel {
		state := "connected"
		if !t.Attached {
			state = "detached"
		}
		who, st := t.Identity, t.Stats
		return admin.Tunnel{ID: t.ID, Tenant: who.Tenant, Subject: who.Subject, Issuer: who.Issuer, TokenID: who.TokenID, Tier: who.Tier, Pod: who.Pod, Peer: t.Peer,
			Instance: a.opts.Instance, Replica: a.self.Name, Via: t.Via, State: state, Since: t.Since, Expires: who.Expires, Streams: st.Streams, Opened: st.Opened, Sent: st.BytesSent,
			Received: st.BytesReceived, SentRate: t.SentRate, ReceivedRate: t.ReceivedRate, Replayed: st.BytesReplayed, Retained: st.Retained, Resumes: st.Resumes,
			RTT: milliseconds(st.RTT)}
	})
}

// plainTunnel stands for the tunnel of streams that have none.
const plainTunnel = "plain"

func (a *App) streams() iter.Seq[admin.Stream] {
	return each(a.sessions.Opener().Streams(), func(s session.StreamInfo) admin.Stream {
		return admin.Stream{Tunnel: cmp.Or(s.Tunnel, plainTunnel), ID: s.Stream, Tenant: s.Identity.Tenant, Subject: s.Identity.Subject, Pod: s.Identity.Pod, Route: s.Route,
			Backend: s.To.Backend, Mode: s.To.Mode, Target: s.To.Target, Priority: s.Priority.String(), App: s.App, Client: s.Client, Instance: a.opts.Instance, Since: s.Since,
			Opening: milliseconds(s.Open), Sent: s.Sent, Received: s.Received, SentRate: s.SentRate, ReceivedRate: s.ReceivedRate}
	})
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func each[T, U any](list []T, f func(T) U) iter.Seq[U] {
	return func(yield func(U) bool) {
		for _, v := range list {
			if !yield(f(v)) {
				return
			}
		}
	}
}

// tenants are those that have something open, or have metrics of their own.
func (a *App) tenants() iter.Seq[admin.Tenant] {
	all := map[string]*admin.Tenant{}
	of := func(name string) *admin.Tenant {
		if all[name] == nil {
			all[name] = &admin.Tenant{Tenant: name, Tier: config.DefaultTier}
		}
		return all[name]
	}
	for name, t := range a.sessions.Opener().TenantTotals() {
		one := of(name)
		one.Opens, one.Refused, one.Sent, one.Received = t.Opened+t.Refused+t.Failed, t.Refused, t.Sent, t.Received
	}
	for _, t := range a.sessions.List() {
		one := of(t.Identity.Tenant)
		one.Tunnels++
		one.Tier = t.Identity.Tier
		one.Retained += t.Stats.Retained
	}
	for _, s := range a.sessions.Opener().Streams() {
		one := of(s.Identity.Tenant)
		one.Streams++
		one.Tier = s.Identity.Tier
		one.SentRate += s.SentRate
		one.ReceivedRate += s.ReceivedRate
	}
	return func(yield func(admin.Tenant) bool) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			a.allow(all[name])
			if !yield(*all[name]) {
				return
			}
		}
	}
}

// allow fills in what a tenant's tier allows, and what is left of it.
func (a *App) allow(t *admin.Tenant) {
	tier, ok := a.config().Tiers[t.Tier]
	if !ok {
		t.Tier, tier = config.DefaultTier, a.config().Tiers[config.DefaultTier]
	}
	t.Limits = admin.Allowance{Opens: tier.OpensPerMinute, Burst: tier.Burst, Tunnels: tier.Tunnels, Streams: tier.Streams, Bandwidth: int64(tier.Bandwidth)}
	left := func(limit, used int) int {
		if limit == 0 {
			return -1
		}
		return max(limit-used, 0)
	}
	tunnels, streams := a.limits.Usage(t.Tenant)
	t.Left = admin.Allowance{Opens: -1, Burst: -1, Tunnels: left(tier.Tunnels, tunnels), Streams: left(tier.Streams, streams), Bandwidth: -1}
	if tier.OpensPerMinute > 0 {
		t.Left.Opens = int(a.limits.Standing(t.Tenant, t.Tier).Remaining)
		t.Left.Burst = t.Left.Opens
	}
}

func (a *App) backendStatus() []admin.Backend {
	pools, streams := map[string][]admin.Pool{}, map[string]int{}
	for _, p := range a.backends.Stats() {
		pools[p.Backend] = append(pools[p.Backend], poolStatus(p))
	}
	for _, s := range a.sessions.Opener().Streams() {
		streams[s.To.Backend]++
	}
	list := []admin.Backend{}
	for _, b := range a.backends.Backends() {
		circuit := a.breaker.Info(b.Name)
		one := admin.Backend{Name: b.Name, Address: b.Address, Breaker: string(circuit.State), Mode: string(circuit.Mode), ChangedBy: circuit.LastChange.By,
			Failures: circuit.Consecutive, LastFailure: circuit.LastFailure.Text, FailedAt: circuit.LastFailure.At, RetryAt: circuit.RetryAt,
			Streams: streams[b.Name], Waiting: b.Waiting, Dialing: b.Dialing, Pools: pools[b.Name]}
		if b.Checked {
			one.Up = &b.Health.Up
			if b.Health.Err != nil {
				one.HealthError = errs.From(b.Health.Err).Text()
			}
		}
		list = append(list, one)
	}
	return list
}

func poolStatus(p backend.PoolStats) admin.Pool {
	s := admin.Pool{Tenant: p.Tenant, KeyID: p.KeyID, Dialing: p.Dialing, Channels: p.Channels, Waiting: p.Waiting, Reused: p.Reused}
	for _, c := range p.Connections {
		s.Connections = append(s.Connections, admin.Connection{ID: c.ID, Server: c.Peer.Version, AgeMS: c.Age.Milliseconds(), Channels: c.Channels, Opened: c.Opened, Retired: c.Retired})
	}
	return s
}

// entries is the configuration that is in force, masked, with where each value came from.
func (a *App) entries() []admin.Setting {
	l := sharedconfig.Loaded[config.Config]{Config: a.config()}
	if from := a.effective.Load(); from != nil {
		l.Sources = from.Sources
	}
	return l.Entries()
}
