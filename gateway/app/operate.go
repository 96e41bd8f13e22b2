package app

import (
	"errors"

	"fairlead/gateway/admin"
	"fairlead/gateway/audit"
	"fairlead/gateway/auth"
	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// What an operator can do while the gateway runs. Each act is recorded by the admin API before it comes here.

func operatorEnded(what string) error {
	return errs.New(errs.ShuttingDown, "an operator ended the %s", what)
}

// endTunnel ends one tunnel; its sidecar may connect again.
func (a *App) endTunnel(id string) error {
	if !a.sessions.End(id, operatorEnded("tunnel")) {
		return errs.New(errs.NotFound, "there is no tunnel %.64q", id)
	}
	return nil
}

func (a *App) endStream(tunnel, id string) error {
	if tunnel == plainTunnel {
		tunnel = ""
	}
	if !a.sessions.Opener().EndStream(tunnel, id, operatorEnded("stream")) {
		return errs.New(errs.NotFound, "tunnel %.64q has no stream %.64q", tunnel, id)
	}
	return nil
}

// decide asks the policy that is in force, and says why.
func (a *App) decide(tenant, route string) admin.Decision {
	d := a.policy.Load().Explain(tenant, route)
	return admin.Decision{Allowed: d.Allowed, Rule: d.Rule, Tenants: d.Tenants, Route: d.Route, Reason: d.Reason, Near: d.Near}
}

// setBreaker overrules a backend's circuit, or gives it back to itself.
func (a *App) setBreaker(name, mode, by string) error {
	if _, ok := a.config().Backends[name]; !ok {
		return errs.New(errs.NotFound, "there is no backend %.64q", name)
	}
	return a.breaker.SetMode(name, breaker.Mode(mode), by)
}

func (a *App) reloadAsked(by string) (admin.ReloadResult, error) {
	r, err := a.ReloadFiles(by)
	return admin.ReloadResult{Applied: r.Applied, Restart: r.Restart, Files: r.Files, Ended: r.Ended}, err
}

func (a *App) revocationList() []admin.Revocation {
	list := []admin.Revocation{}
	for _, r := range a.revocations.List() {
		list = append(list, revocation(r))
	}
	return list
}

func revocation(r auth.Revocation) admin.Revocation {
	return admin.Revocation{ID: r.ID, TokenID: r.TokenID, Subject: r.Subject, Tenant: r.Tenant, Issuer: r.Issuer, IssuedBefore: r.IssuedBefore, Reason: r.Reason, By: r.By,
		Since: r.At, Expires: r.Until}
}

// revoke locks out a token, a subject or a tenant, and ends what it has open.
func (a *App) revoke(by string, what admin.RevocationRequest) (admin.Revocation, error) {
	r, err := a.revocations.Add(auth.Revocation{TokenID: what.TokenID, Subject: what.Subject, Tenant: what.Tenant, Issuer: what.Issuer, IssuedBefore: what.IssuedBefore,
		Reason: what.Reason, By: by, Until: what.Expires})
	if err != nil && r.ID == "" {
		return admin.Revocation{}, err
	}
	tunnels, streams := a.sessions.Enforce(a.revoked)
	told := revocation(r)
	told.Ended = tunnels + streams
	if err != nil { // it is in force, but a restart would forget it
		a.log.Error("a revocation is in force, but could not be saved", append(logging.Error(err), "revocation", r.ID)...)
		told.Unsaved = true
	}
	a.log.Warn("revoked", "revocation", r.ID, logging.FieldTenant, r.Tenant, logging.FieldSubject, r.Subject, "token_id", r.TokenID, "by", by, "ended", told.Ended)
	_ = a.audit.Record(audit.Event{Action: audit.Revoke, Result: audit.Allowed, Actor: by, Tenant: r.Tenant, TokenID: r.TokenID, Issuer: r.Issuer, Target: r.Subject, Detail: r.Reason}) // it is in force all the same
	return told, nil
}

// unrevoke lets in again who was locked out.
func (a *App) unrevoke(id string) error {
	_, err := a.revocations.Remove(id)
	if err != nil && !errors.Is(err, errs.NotFound) { // it has ended, but a restart would bring it back
		a.log.Error("a revocation has ended, but that could not be saved", append(logging.Error(err), "revocation", id)...)
		return nil
	}
	return err
}
