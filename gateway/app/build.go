package app

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"time"

	"fairlead/gateway/admin"
	"fairlead/gateway/admin/ui"
	"fairlead/gateway/auth"
	"fairlead/gateway/backend"
	"fairlead/gateway/breaker"
	"fairlead/gateway/config"
	"fairlead/gateway/limit"
	"fairlead/gateway/policy"
	"fairlead/gateway/server"
	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/shared/ws"
)

func (a *App) newAuth() (err error) {
	cfg := auth.RevocationsConfig{File: a.config().Revocations.File, Logger: a.log, Metrics: a.metrics.Set()}
	if a.shared() {
		cfg.Shared = sharedRevocations{a.store}
	}
	a.revocations, err = auth.NewRevocations(cfg)
	if err != nil {
		return err
	}
	a.auth, err = auth.New(auth.Config{Issuers: issuers(a.config().Auth), Revocations: a.revocations, Logger: a.log, Metrics: a.metrics.Set()})
	if err == nil {
		a.stack.Push("token keys", func(context.Context) error { return a.auth.Close() })
	}
	return err
}

func (a *App) newPolicy() error {
	rules, err := policy.New(policyRules(a.config().Policy))
	a.policy.Store(rules)
	return err
}

// processMemory bounds what all tunnels of the process together hold beyond their streams' initial windows, as a multiple
// of what one may hold.
const processMemory = 16

func (a *App) newLimits() (err error) {
	if a.config().Limits.Shedding.Enabled {
		a.pressure, err = limit.NewPressure(limit.PressureConfig{Sources: pressureSources(a.config().Limits.Shedding), Logger: a.log, Metrics: a.metrics.Set()})
		if err != nil {
			return err
		}
	}
	l := a.config().Limits
	if a.compressor, err = link.NewCompressor(); err != nil {
		return err
	}
	a.memory = link.NewBudget(processMemory*int64(a.config().Tunnel.Memory), nil)
	cfg := limit.Config{Tiers: limitTiers(a.config().Tiers), Exempt: exemptions(l.Exempt),
		HandshakesPerMinute: l.HandshakesPerMinute, HandshakeBurst: l.HandshakeBurst, UnauthenticatedPerAddress: l.UnauthenticatedPerAddress,
		Memory: a.memory, Pressure: a.pressure, Metrics: a.metrics.Set()}
	if a.shared() {
		cfg.Shared, cfg.Timeout, cfg.Replica = sharedLimits{a.store}, a.config().Store.Timeout, a.self.ID
	}
	if a.limits, err = limit.New(cfg); err == nil {
		a.limits.SetDegraded(!a.store.Health().Up)
		a.limits.SetShare(a.config().Store.Replicas)
	}
	return err
}

func (a *App) newBackends() (err error) {
	cfg := breaker.Config{Instance: a.opts.Instance, Failures: a.config().Breaker.Failures, RetryAfter: a.config().Breaker.RetryAfter,
		OnChange: a.breakerChanged, Logger: a.log, Metrics: a.metrics.Set()}
	if a.shared() {
		cfg.Shared, cfg.Replica, cfg.ProbeFor = sharedCircuits{a.store}, a.self.Name, longestProbe(a.config())
	}
	a.breaker, err = breaker.New(cfg)
	if err != nil {
		return err
	}
	a.stack.Push("breakers", func(context.Context) error {
		a.breaker.Close()
		return nil
	})
	list, routes := backends(a.config()), routes(a.config())
	var hostKeys backend.HostKeyStore
	if a.shared() {
		hostKeys = a.store
	}
	a.backends, err = backend.New(backend.Config{HostKeys: hostKeys, Backends: list, Routes: routes, Pool: pool(a.config().SSHPool), Breaker: a.breaker, Instance: a.opts.Instance,
		OnHostKey: a.hostKeySeen, OnCertificate: a.certificateMade, SlowDial: a.config().Opens.Slow, Logger: a.log, Metrics: a.metrics.Set(), BackendMetrics: a.metrics})
	if err == nil {
		a.stack.Push("backends", a.backends.Close)
	}
	return err
}

// longestProbe is longer than any dial of a backend may take, its handshake included.
func longestProbe(cfg config.Config) time.Duration {
	longest := time.Minute
	for _, b := range cfg.Backends {
		longest = max(longest, b.DialTimeout+5*time.Second)
	}
	return longest
}

// dialer gives the backends the types of the sessions.
type dialer struct {
	set         *backend.Set
	compression func(route string) link.Compression
}

func (d dialer) Dial(ctx context.Context, who session.Identity, route string) (relay.Conn, error) {
	return d.set.Dial(ctx, backend.Caller{Tenant: who.Tenant, Subject: who.Subject, Issuer: who.Issuer, Pod: who.Pod}, route)
}

func (d dialer) Describe(route string) (session.Destination, bool) {
	r, ok := d.set.Route(route)
	return session.Destination{Backend: r.Backend, Mode: string(r.Mode), Target: r.Target, Compression: d.compression(route)}, ok
}

// compression is what a route's configuration wishes; one that is not configured is refused anyway.
func (a *App) compression(route string) link.Compression {
	wish, _ := link.ParseCompression(a.config().Routes[route].Compression) // it was validated
	return wish
}

// origin is what session.Identity.Origin holds: what the verifier knows of a token, and the client certificate that came
// with it, nil without.
type origin struct {
	auth.Identity
	cert *x509.Certificate
}

// verify gives a token's identity the type of the sessions. To them a token ends when it is no longer accepted, which is
// after the leeway of its issuer.
func (a *App) verify(ctx context.Context, token string, cert *x509.Certificate) (session.Identity, error) {
	who, err := a.auth.VerifyWith(ctx, token, cert)
	return session.Identity{Tenant: who.Tenant, Subject: who.Subject, Issuer: who.Issuer, TokenID: who.TokenID, Tier: who.Tier, Pod: who.Pod,
		Expires: who.Expires.Add(a.leeway(who.Issuer)), Origin: origin{who, cert}}, err
}

func (a *App) verifyHeader(ctx context.Context, authorization string, cert *x509.Certificate) (session.Identity, error) {
	token, err := auth.TokenFromHeader(authorization)
	if err != nil {
		return session.Identity{}, err
	}
	return a.verify(ctx, token, cert)
}

// still says what has become of an identity since it was verified. That there was no time to find out says nothing.
func (a *App) still(ctx context.Context, who session.Identity) error {
	err := a.auth.Check(ctx, who.Origin.(origin).Identity)
	if errors.Is(err, errs.Canceled) {
		return nil
	}
	return err
}

// revoked is the part of still that costs nothing.
func (a *App) revoked(who session.Identity) error {
	return a.revocations.Check(who.Origin.(origin).Identity)
}

func (a *App) leeway(issuer string) (most time.Duration) {
	for _, i := range a.config().Auth.Issuers {
		if i.Issuer == issuer {
			most = max(most, i.Leeway)
		}
	}
	return most
}

func (a *App) opener() *session.Opener {
	return session.NewOpener(session.OpenerConfig{Policy: a, Revoked: a.revoked, Limits: a.limits, Backends: dialer{a.backends, a.compression}, Audit: a.audit, Timeout: a.config().Opens.Timeout,
		Slow: a.config().Opens.Slow, Observe: a.latency.Observe,
		Waits: func(ctx context.Context) (context.Context, func() []any) {
			ctx, w := backend.WithWaits(ctx)
			return ctx, w.Fields
		},
		Tenants: a.config().Metrics.Tenants, Metrics: a.metrics.Set(), Now: time.Now})
}

func (a *App) newSessions() error {
	t := a.config().Tunnel
	a.sessions = session.New(session.Config{
		Link: link.Config{Window: int(t.Window), MaxWindow: int(t.MaxWindow), Memory: int64(t.Memory), MaxMessage: int(t.MaxMessage),
			Heartbeat: t.Heartbeat, Idle: t.Idle, Replica: a.opts.Instance, Budget: a.memory, Compressor: a.compressor},
		ResumeTTL: t.ResumeTTL,
		Handshake: handshakeTimeout,
		Replicas:  a.replicas(),
		Opener:    a.opener(),
		Limits:    a.limits,
		Verify: func(ctx context.Context, token string, was session.Identity) (session.Identity, error) {
			return a.verify(ctx, token, was.Origin.(origin).cert)
		},
		Revoked: a.revoked,
		Audit:   a.audit,
		Logger:  a.log,
		Metrics: a.metrics.Set(),
		Now:     time.Now,
	})
	a.metrics.Set().NewGauge("fairlead_gateway_replicas", func() float64 {
		if known := a.known.Load(); known != nil {
			return float64(len(*known))
		}
		return 0
	})
	a.stack.Push("tunnels", a.sessions.Close)
	return nil
}

func (a *App) newServer() (err error) {
	cfg := server.Config{Listen: a.config().Listen, MaxMessage: int(a.config().Tunnel.MaxMessage), Sessions: a.sessions, Opener: a.sessions.Opener(), Ready: a.ready, Deflate: a.config().Deflate,
		Tune: ws.Tune, Logger: a.log, Metrics: a.metrics.Set(), Handshake: a.limits.Handshake, Admit: a.limits.Admit, Strangers: unlimited(a.config().Limits.Unauthenticated),
		Audit: a.audit, Standing: a.limits.Standing,
		Verify: a.verifyHeader, Replica: a.self.Name}
	for _, cidr := range a.config().TrustedProxies {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return errs.Wrap(errs.ConfigInvalid, err, "trusted_proxies")
		}
		cfg.TrustedProxies = append(cfg.TrustedProxies, p)
	}
	if a.config().TLS.Disabled {
		a.log.Warn("TLS is disabled: tokens and everything else travel in plain text; for development, or behind a proxy on the same host")
	} else {
		a.certs = &certificate{}
		commit, err := a.certs.prepare(a.config().TLS)
		if err != nil {
			return err
		}
		commit()
		cfg.TLS = a.certs.serverConfig()
		a.metrics.Set().NewGauge("fairlead_gateway_certificate_expires_timestamp_seconds", func() float64 { return float64(a.certs.expires().Unix()) })
	}
	if a.server, err = server.New(cfg); err == nil {
		a.stack.Push("server", a.server.Shutdown)
	}
	return err
}

func (a *App) newAdmin() (err error) {
	if a.config().Admin.Listen == "" {
		return nil
	}
	setLevel := a.opts.SetLevel
	if setLevel == nil {
		setLevel = func(string) error {
			return errs.New(errs.BadRequest, "the log level of this process cannot be changed")
		}
	}
	c := a.config().Admin
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && !config.Loopback(host) {
		a.log.Warn("the admin API is reachable from other machines, and speaks plain text: its tokens do too", "listen", c.Listen)
	}
	cfg := admin.Config{Listen: c.Listen, TokenFile: c.TokenFile, RequestsPerMinute: c.RequestsPerMinute, FailuresPerMinute: c.FailuresPerMinute, Audit: a.audit, Ready: a.ready, Metrics: a.writeMetrics,
		Diagnostics: a.diagnostics, Effective: a.entries, Live: a.history.Live, Events: a.history.Events,
		Tunnels: a.tunnels, EndTunnel: a.endTunnel, Streams: a.streams, EndStream: a.endStream, Tenants: a.tenants,
		Backends: a.backendStatus, SetBreaker: a.setBreaker, Replicas: a.replicasView, DrainProgress: a.drainProgress,
		Revocations: a.revocationList, Revoke: a.revoke, Unrevoke: a.unrevoke,
		TestPolicy: a.decide, Reload: a.reloadAsked, Drain: a.ask, Level: a.opts.Level, SetLevel: setLevel,
		Page: ui.Handler(), Logger: a.log, Registry: a.metrics.Set()}
	for _, t := range c.Tokens {
		cfg.Tokens = append(cfg.Tokens, admin.Token{Name: t.Name, Role: admin.Role(t.Role), File: t.File})
	}
	a.admin, err = admin.New(cfg)
	if err == nil {
		a.stack.Push("admin", a.admin.Shutdown)
	}
	return err
}
