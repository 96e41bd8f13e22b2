package app

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"fairlead/gateway/audit"
	"fairlead/gateway/config"
	"fairlead/gateway/policy"
	"fairlead/gateway/session"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// reloadable are the keys, or the blocks of keys, that take effect without a restart.
var reloadable = []string{"tls.cert_file", "tls.key_file", "tls.client_ca_file", "tls.client_certificates", "auth", "backends", "routes", "policy", "tiers",
	"limits.exempt", "ssh_pool", "log.level"}

// Reloaded is what a reload came to.
type Reloaded struct {
	Applied []string // keys that have changed and are in force
	Restart []string // keys that have changed and count after a restart
	Files   []string // keys whose files have changed
	Ended   int      // streams and tunnels that are not allowed any more
}

// Reload takes a changed configuration, and reads the files that it names anew, whole or not at all: with an error, what
// was loaded before stays in force. Connections stay, but for those of tenants that may not have them any more. by is who
// asked, for the audit log.
func (a *App) Reload(cfg config.Config, by string) (Reloaded, error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	return a.reload(cfg, by)
}

// reload is called with reloading held.
func (a *App) reload(cfg config.Config, by string) (Reloaded, error) {
	r, err := a.replace(cfg)
	if err != nil {
		a.reloadFailed(err, by)
		return r, err
	}
	a.log.Info("configuration reloaded", "applied", strings.Join(r.Applied, ", "), "needs_restart", strings.Join(r.Restart, ", "),
		"files", strings.Join(r.Files, ", "), "ended", r.Ended, "by", by)
	_ = a.audit.Record(audit.Event{Action: audit.Configuration, Result: audit.Allowed, Actor: by, Detail: r.String()}) // it has happened
	return r, nil
}

func (a *App) reloadFailed(err error, by string) {
	a.log.Error("the configuration was not reloaded; what was loaded before stays in force", append(logging.Error(err), "by", by)...)
	_ = a.audit.Record(audit.Event{Action: audit.Configuration, Result: audit.Failed, Actor: by, Code: errs.CodeOf(err), Detail: errs.From(err).Text()}) // nothing has happened
}

// String is one line for people.
func (r Reloaded) String() string {
	return fmt.Sprintf("applied: %s; needs a restart: %s; files: %s; ended: %d", orNone(r.Applied), orNone(r.Restart), orNone(r.Files), r.Ended)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// replace builds everything before it puts anything in place.
func (a *App) replace(cfg config.Config) (r Reloaded, err error) {
	if problems := cfg.Validate(); len(problems) > 0 { // Load has found them already, but not every caller has it from there
		return r, errs.Wrap(errs.ConfigInvalid, sharedconfig.Problems(problems), "the configuration")
	}
	rules, err := policy.New(policyRules(cfg.Policy))
	if err != nil {
		return r, err
	}
	commits, err := a.prepare(cfg)
	if err != nil {
		return r, err
	}
	if err := a.limits.Apply(limitTiers(cfg.Tiers), exemptions(cfg.Limits.Exempt)); err != nil { // the last that can fail
		return r, err
	}
	before := a.config()
	r.Applied, r.Restart = sharedconfig.Split(sharedconfig.Diff(before, cfg), reloadable)
	r.Files = a.watched.changed(cfg)
	for _, commit := range commits {
		commit()
	}
	a.auth.Refresh()
	a.policy.Store(rules)
	a.cfg.Store(reloaded(before, cfg))
	r.Ended = a.enforce(context.Background())
	return r, nil
}

// prepare has each feature that reads files, or could refuse its part, build what is new.
func (a *App) prepare(cfg config.Config) (commits []func(), err error) {
	steps := []func() (func(), error){
		func() (func(), error) { return a.auth.Prepare(issuers(cfg.Auth)) },
		func() (func(), error) { return a.prepareBackends(cfg) },
		func() (func(), error) { return a.prepareLevel(cfg.Log.Level) },
	}
	if a.peer != nil {
		steps = append(steps, func() (func(), error) { return func() {}, a.peer.Reload() }) // connections stay, whatever the secret
	}
	if a.certs != nil && !cfg.TLS.Disabled {
		steps = append(steps, func() (func(), error) { return a.certs.prepare(cfg.TLS) })
	}
	var problems []error
	for _, step := range steps {
		commit, err := step()
		if err != nil {
			problems = append(problems, err)
			continue
		}
		commits = append(commits, commit)
	}
	return commits, errors.Join(problems...)
}

func (a *App) prepareBackends(cfg config.Config) (func(), error) {
	commit, err := a.backends.Prepare(backends(cfg), routes(cfg), pool(cfg.SSHPool))
	if err != nil {
		return nil, err
	}
	return func() {
		for _, gone := range commit().BackendsRemoved {
			a.breaker.Forget(gone)
		}
	}, nil
}

func (a *App) prepareLevel(level string) (func(), error) {
	if a.opts.SetLevel == nil || level == a.config().Log.Level {
		return func() {}, nil // one that was set by the API stays
	}
	return func() { _ = a.opts.SetLevel(level) }, nil // it was validated
}

// reloaded is the configuration that is in force: what needs a restart stays as it was.
func reloaded(before, now config.Config) *config.Config {
	next := before
	next.Auth, next.Backends, next.Routes, next.Policy, next.Tiers, next.SSHPool = now.Auth, now.Backends, now.Routes, now.Policy, now.Tiers, now.SSHPool
	next.Limits.Exempt, next.Log.Level = now.Limits.Exempt, now.Log.Level
	disabled := before.TLS.Disabled
	if next.TLS = now.TLS; now.TLS.Disabled != disabled {
		next.TLS = before.TLS
	}
	return &next
}

// enforce ends what is open and would not be allowed now: by policy, for want of its route, by a revocation, by the
// cluster's word, or because its issuer is gone. It returns how many tunnels and streams those were.
func (a *App) enforce(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, a.config().Revocations.Review)
	defer cancel()
	tunnels, streams := a.sessions.Enforce(func(who session.Identity) error { return a.still(ctx, who) })
	return tunnels + streams + a.sessions.Opener().Recheck(func(who session.Identity, route string) error { return a.Allow(who.Tenant, route) })
}

// Allow asks the policy that is in force, and whether there is such a route. To a tenant it makes no difference.
func (a *App) Allow(tenant, route string) error {
	if err := a.policy.Load().Allow(tenant, route); err != nil {
		return err
	}
	if _, ok := a.backends.Route(route); !ok {
		return errs.New(errs.RouteUnknown, "there is no route %.255q", route)
	}
	return nil
}

// Explain answers what a gateway with cfg would say to a tenant that asks for a route, and why.
func Explain(cfg config.Config, tenant, route string) (policy.Decision, error) {
	rules, err := policy.New(policyRules(cfg.Policy))
	if err != nil {
		return policy.Decision{}, err
	}
	d := rules.Explain(tenant, route)
	if _, ok := cfg.Routes[route]; !ok {
		d.Near = append(d.Near, fmt.Sprintf("there is no route %.100q", route))
	}
	return d, nil
}
