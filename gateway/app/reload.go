package app

import (
	"strings"

	"fairlead/gateway/config"
	"fairlead/gateway/limit"
	"fairlead/gateway/policy"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/logging"
)

// reloadable are the keys, or the blocks of keys, that take effect without a restart.
var reloadable = []string{"policy", "tiers", "log.level"}

// Reload takes a changed configuration, and reads the files that it names anew: token keys and certificate. It applies
// what can be applied while running, each part whole or not at all, and says what needs a restart. No connection is
// dropped for it.
func (a *App) Reload(cfg config.Config) error {
	changed := sharedconfig.Diff(a.cfg, cfg)
	if err := a.apply(cfg); err != nil {
		return err
	}
	applied, restart := sharedconfig.Split(changed, reloadable)
	a.cfg.Policy, a.cfg.Tiers, a.cfg.Log.Level = cfg.Policy, cfg.Tiers, cfg.Log.Level
	a.log.Info("configuration reloaded", "applied", strings.Join(applied, ", "), "needs_restart", strings.Join(restart, ", "))
	a.reloadFiles()
	return nil
}

// apply builds everything before it puts anything in place.
func (a *App) apply(cfg config.Config) error {
	rules, err := policy.New(policyRules(cfg.Policy))
	if err != nil {
		return err
	}
	if err := a.limits.SetTiers(limitTiers(cfg.Tiers)); err != nil {
		return err
	}
	a.policy.Store(rules)
	if a.opts.SetLevel != nil {
		return a.opts.SetLevel(cfg.Log.Level)
	}
	return nil
}

func (a *App) reloadFiles() {
	report := func(what string, err error) {
		if err != nil {
			a.log.Error("reload of "+what+" failed; what was loaded before stays in use", logging.Error(err)...)
			return
		}
		a.log.Info("reloaded " + what)
	}
	report("token keys", a.auth.Reload())
	if a.certs != nil {
		report("certificate", a.certs.load())
	}
}

// Allow asks the policy that is in force.
func (a *App) Allow(tenant, route string) error { return a.policy.Load().Allow(tenant, route) }

func policyRules(configured []config.Rule) []policy.Rule {
	rules := make([]policy.Rule, len(configured))
	for i, r := range configured {
		rules[i] = policy.Rule{Tenants: r.Tenants, Routes: r.Routes}
	}
	return rules
}

func limitTiers(configured map[string]config.Tier) map[string]limit.Tier {
	tiers := make(map[string]limit.Tier, len(configured))
	for name, t := range configured {
		tiers[name] = limit.Tier{OpensPerMinute: t.OpensPerMinute, Burst: t.Burst, Tunnels: t.Tunnels, Streams: t.Streams}
	}
	return tiers
}
