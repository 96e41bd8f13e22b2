package app

import (
	"context"
	"net/netip"
	"time"

	"fairlead/gateway/admin"
	"fairlead/gateway/auth"
	"fairlead/gateway/backend"
	"fairlead/gateway/breaker"
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
	issuers := make([]auth.Issuer, len(a.cfg.Auth.Issuers))
	for i, c := range a.cfg.Auth.Issuers {
		issuers[i] = auth.Issuer{Issuer: c.Issuer, Audience: c.Audience, JWKSURL: c.JWKSURL, JWKSFile: c.JWKSFile, HMACSecretFile: c.HMACSecretFile,
			Algorithms: c.AllowedAlgorithms(), Tenant: c.Tenant, Tier: c.Tier, Leeway: c.Leeway}
	}
	a.auth, err = auth.New(auth.Config{Issuers: issuers, Logger: a.log, Metrics: a.metrics.Set()})
	if err == nil {
		a.stack.Push("token keys", func(context.Context) error { return a.auth.Close() })
	}
	return err
}

func (a *App) newPolicy() error {
	rules, err := policy.New(policyRules(a.cfg.Policy))
	a.policy.Store(rules)
	return err
}

func (a *App) newLimits() (err error) {
	a.limits, err = limit.New(limit.Config{Tiers: limitTiers(a.cfg.Tiers), Metrics: a.metrics.Set()})
	return err
}

func (a *App) newBackends() (err error) {
	a.breaker, err = breaker.New(breaker.Config{Instance: a.opts.Instance, Failures: a.cfg.Breaker.Failures, RetryAfter: a.cfg.Breaker.RetryAfter,
		Logger: a.log, Metrics: a.metrics.Set()})
	if err != nil {
		return err
	}
	p := a.cfg.SSHPool
	cfg := backend.Config{Breaker: a.breaker, SlowDial: slowOpen, Logger: a.log, Metrics: a.metrics.Set(),
		Pool: backend.PoolConfig{ChannelsPerConnection: p.ChannelsPerConnection, Connections: p.Connections, Keepalive: p.Keepalive, Idle: p.Idle, MaxAge: p.MaxAge}}
	for name, b := range a.cfg.Backends {
		cfg.Backends = append(cfg.Backends, backend.Backend{Name: name, Address: b.Address, User: b.User, KeyFile: b.KeyFile, CertificateFile: b.CertificateFile,
			KnownHostsFile: b.HostKeys.KnownHostsFile, HostKeyMode: backend.HostKeyMode(b.HostKeys.Mode), DialTimeout: b.DialTimeout})
	}
	for name, r := range a.cfg.Routes {
		cfg.Routes = append(cfg.Routes, backend.Route{Name: name, Backend: r.Backend, Mode: backend.Mode(r.Mode), Target: r.Target})
	}
	if a.backends, err = backend.New(cfg); err == nil {
		a.stack.Push("backends", a.backends.Close)
	}
	return err
}

// dialer gives the backends the type that streams are relayed with.
type dialer struct{ *backend.Set }

func (d dialer) Dial(ctx context.Context, tenant, route string) (relay.Conn, error) {
	return d.Set.Dial(ctx, tenant, route)
}

// verify gives a token's identity the type of the sessions. To them a token ends when it is no longer accepted, which is
// after the leeway of its issuer.
func (a *App) verify(ctx context.Context, token string) (session.Identity, error) {
	who, err := a.auth.Verify(ctx, token)
	return session.Identity{Tenant: who.Tenant, Subject: who.Subject, Issuer: who.Issuer, TokenID: who.TokenID, Tier: who.Tier,
		Expires: who.Expires.Add(a.leeway(who.Issuer))}, err
}

func (a *App) leeway(issuer string) (most time.Duration) {
	for _, i := range a.cfg.Auth.Issuers {
		if i.Issuer == issuer {
			most = max(most, i.Leeway)
		}
	}
	return most
}

func (a *App) opener() *session.Opener {
	return session.NewOpener(session.OpenerConfig{Policy: a, Limits: a.limits, Backends: dialer{a.backends}, Timeout: openTimeout, Slow: slowOpen,
		Metrics: a.metrics.Set(), Now: time.Now})
}

// processMemory bounds what all tunnels of the process together hold beyond their streams' initial windows, as a multiple
// of what one may hold.
const processMemory = 16

func (a *App) newSessions() error {
	t := a.cfg.Tunnel
	a.sessions = session.New(session.Config{
		Link: link.Config{Window: int(t.Window), MaxWindow: int(t.MaxWindow), Memory: int64(t.Memory), MaxMessage: int(t.MaxMessage),
			Heartbeat: t.Heartbeat, Idle: t.Idle, Replica: a.opts.Instance, Budget: link.NewBudget(processMemory*int64(t.Memory), nil)},
		ResumeTTL: t.ResumeTTL,
		Handshake: handshakeTimeout,
		Opener:    a.opener(),
		Limits:    a.limits,
		Verify:    a.verify,
		Logger:    a.log,
		Metrics:   a.metrics.Set(),
		Now:       time.Now,
	})
	a.stack.Push("tunnels", a.sessions.Close)
	return nil
}

func (a *App) newServer() (err error) {
	cfg := server.Config{Listen: a.cfg.Listen, MaxMessage: int(a.cfg.Tunnel.MaxMessage), Sessions: a.sessions, Opener: a.sessions.Opener(), Ready: a.ready,
		Tune: ws.Tune, Logger: a.log, Metrics: a.metrics.Set(), Handshake: a.limits.Handshake,
		Verify: func(ctx context.Context, authorization string) (session.Identity, error) {
			token, err := auth.TokenFromHeader(authorization)
			if err != nil {
				return session.Identity{}, err
			}
			return a.verify(ctx, token)
		}}
	for _, cidr := range a.cfg.TrustedProxies {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return errs.Wrap(errs.ConfigInvalid, err, "trusted_proxies")
		}
		cfg.TrustedProxies = append(cfg.TrustedProxies, p)
	}
	if a.cfg.TLS.Disabled {
		a.log.Warn("TLS is disabled: tokens and everything else travel in plain text; for development, or behind a proxy on the same host")
	} else if a.certs, err = newCertificate(a.cfg.TLS.CertFile, a.cfg.TLS.KeyFile); err != nil {
		return err
	} else {
		cfg.TLS = a.certs.serverConfig()
	}
	if a.server, err = server.New(cfg); err == nil {
		a.stack.Push("server", a.server.Shutdown)
	}
	return err
}

func (a *App) newAdmin() (err error) {
	if a.cfg.Admin.Listen == "" {
		return nil
	}
	setLevel := a.opts.SetLevel
	if setLevel == nil {
		setLevel = func(string) error {
			return errs.New(errs.BadRequest, "the log level of this process cannot be changed")
		}
	}
	a.admin, err = admin.New(admin.Config{Listen: a.cfg.Admin.Listen, TokenFile: a.cfg.Admin.TokenFile, Ready: a.ready,
		Diagnostics: func() any { return a.diagnostics() },
		Tunnels:     func() any { return a.sessions.List() },
		EndTunnel: func(id string) bool {
			return a.sessions.End(id, errs.New(errs.ShuttingDown, "an operator ended the tunnel"))
		},
		Backends:   func() any { return a.backendStatus() },
		SetBreaker: a.setBreaker,
		Effective:  func() any { return a.opts.Effective },
		Drain:      a.ask,
		SetLevel:   setLevel,
		Metrics:    a.writeMetrics,
		Logger:     a.log,
	})
	if err == nil {
		a.stack.Push("admin", a.admin.Shutdown)
	}
	return err
}
