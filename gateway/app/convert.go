package app

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"fairlead/gateway/auth"
	"fairlead/gateway/backend"
	"fairlead/gateway/config"
	"fairlead/gateway/limit"
	"fairlead/gateway/policy"
)

// What the configuration says, in the words of the features.

func issuers(configured config.Auth) []auth.Issuer {
	list := make([]auth.Issuer, len(configured.Issuers))
	for i, c := range configured.Issuers {
		list[i] = auth.Issuer{Issuer: c.Issuer, Audience: c.Audience, JWKSURL: c.JWKSURL, JWKSFile: c.JWKSFile, JWKS: c.JWKS, HMACSecretFile: c.HMACSecretFile,
			Algorithms: c.AllowedAlgorithms(), Tenant: c.Tenant, Tier: c.Tier, Leeway: c.Leeway, SharedTenants: c.SharedTenants}
		if k := c.Kubernetes; k.Enabled {
			list[i].Kubernetes = &auth.Kubernetes{APIServer: k.APIServer, TokenFile: k.TokenFile, CAFile: k.CAFile, Review: k.TokenReview,
				ReviewTTL: k.ReviewTTL, ReviewGrace: k.ReviewGrace, ReviewTimeout: k.ReviewTimeout}
		}
	}
	return list
}

func policyRules(configured []config.Rule) []policy.Rule {
	rules := make([]policy.Rule, len(configured))
	for i, r := range configured {
		rules[i] = policy.Rule{Tenants: r.Tenants, Routes: r.Routes}
	}
	return rules
}

// unlimited passes on what the configuration means by 0 to those who mean their default by it.
func unlimited(n int) int {
	if n == 0 {
		return math.MaxInt32
	}
	return n
}

func limitTiers(configured map[string]config.Tier) map[string]limit.Tier {
	tiers := make(map[string]limit.Tier, len(configured))
	for name, t := range configured {
		tiers[name] = limit.Tier{OpensPerMinute: t.OpensPerMinute, Burst: t.Burst, Tunnels: t.Tunnels, Streams: t.Streams, Bandwidth: int(t.Bandwidth),
			Memory: int64(t.Memory)}
	}
	return tiers
}

func exemptions(configured []config.Exemption) []limit.Exemption {
	list := make([]limit.Exemption, len(configured))
	for i, e := range configured {
		list[i] = limit.Exemption{Tenants: e.Tenants, Limits: e.Limits}
		for _, cidr := range e.Addresses {
			if p, err := netip.ParsePrefix(cidr); err == nil { // else the configuration was refused
				list[i].Addresses = append(list[i].Addresses, p)
			}
		}
	}
	return list
}

// pressureSources are those of the process, two of which have thresholds that are configured: where low priority is
// refused. The others follow from it.
func pressureSources(configured config.Shedding) []limit.Source {
	sources := limit.Sources()
	memory, latency := float64(configured.Memory)/100, configured.Latency.Seconds()
	for i := range sources {
		switch sources[i].Name {
		case "memory":
			sources[i].Thresholds = limit.Thresholds{memory, memory + (1-memory)/2, memory + (1-memory)*3/4}
		case "scheduler":
			sources[i].Thresholds = limit.Thresholds{latency, 3 * latency, 10 * latency}
		}
	}
	return sources
}

func backends(configured config.Config) []backend.Backend {
	list := make([]backend.Backend, 0, len(configured.Backends))
	for _, name := range slices.Sorted(maps.Keys(configured.Backends)) {
		b := configured.Backends[name]
		one := backend.Backend{Name: name, Address: b.Address, User: b.User, KeyFile: b.KeyFile, CertificateFile: b.CertificateFile, MoreKeyFiles: b.KeyFiles,
			KnownHostsFile: b.HostKeys.KnownHostsFile, RevokedFile: b.HostKeys.RevokedFile, HostKeyMode: backend.HostKeyMode(b.HostKeys.Mode),
			DialTimeout: b.DialTimeout, Warm: b.Warm, Health: backend.Health{Interval: b.Health.Interval, Timeout: b.Health.Timeout},
			Dialing: backend.Dialing{Concurrent: b.Dialing.Concurrent, PerSecond: b.Dialing.PerSecond, Handshakes: b.Dialing.Handshakes,
				HandshakesPerSecond: b.Dialing.HandshakesPerSecond, Burst: b.Dialing.Burst, Queue: b.Dialing.Queue, QueuePerTenant: b.Dialing.QueuePerTenant}}
		if id := b.Identity; id.CAKeyFile != "" {
			one.Identity = &backend.Identity{CAKeyFile: id.CAKeyFile, TTL: id.TTL, Principals: id.Principals, KeyID: id.KeyID, ForceCommand: id.ForceCommand,
				SourceAddresses: id.SourceAddresses, Extensions: id.Extensions}
		}
		list = append(list, one)
	}
	return list
}

func routes(configured config.Config) []backend.Route {
	list := make([]backend.Route, 0, len(configured.Routes))
	for _, name := range slices.Sorted(maps.Keys(configured.Routes)) {
		r := configured.Routes[name]
		list = append(list, backend.Route{Name: name, Backend: r.Backend, Mode: backend.Mode(r.Mode), Target: r.Target})
	}
	return list
}

// pool passes on what the configuration means by 0, which is none rather than the default.
func pool(p config.SSHPool) backend.PoolConfig {
	none := func(d time.Duration) time.Duration {
		if d == 0 {
			return -1
		}
		return d
	}
	return backend.PoolConfig{ChannelsPerConnection: p.ChannelsPerConnection, Connections: p.Connections, TenantConnections: p.ConnectionsPerTenant,
		Keepalive: none(p.Keepalive), Idle: max(p.Idle, 1), MaxAge: none(p.MaxAge), WarmFor: p.WarmFor}
}
