package app

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/sidecar/config"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/status"
)

// reloadable are the keys, or the blocks of keys, that take effect without a restart.
func reloadable() []string {
	return []string{"profile", "gateway", "tunnels", "reconnect", "queue", "listeners", "tunnel", "shutdown", "log.level"}
}

// Reloaded is what a reload came to.
type Reloaded = status.Reloaded

// ReloadFile reads the configuration anew, as at the start, and takes it. What was read first is taken first, or an old file
// could win over a newer one.
func (a *App) ReloadFile() (Reloaded, error) {
	a.loading.Lock()
	defer a.loading.Unlock()
	loaded, err := a.opts.Load()
	if err != nil {
		a.notReloaded(err)
		return Reloaded{}, err
	}
	r, err := a.Reload(loaded.Config)
	if err == nil {
		a.show(loaded, r.NeedsRestart)
	}
	return r, err
}

// show makes what was loaded the configuration that is shown, but for the keys that wait for a restart: those stay as they
// are in force.
func (a *App) show(loaded *sharedconfig.Loaded[config.Config], waiting []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	shown := *loaded
	shown.Config, shown.Sources = a.cfg, maps.Clone(loaded.Sources)
	for _, key := range waiting {
		delete(shown.Sources, key) // a default has none
		if a.loaded == nil {
			continue
		}
		if source, ok := a.loaded.Sources[key]; ok {
			shown.Sources[key] = source
		}
	}
	a.loaded = &shown
}

func (a *App) notReloaded(err error) {
	a.log.Error("the configuration was not reloaded; what was loaded before stays in force", logging.Error(err)...)
}

// Reload takes a changed configuration, whole or not at all. No connection is dropped for it: those of a listener that is
// gone go on until they end, and tunnels are replaced before they end.
func (a *App) Reload(cfg config.Config) (r Reloaded, err error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if r, err = a.replace(cfg); err != nil {
		a.notReloaded(err)
		return r, err
	}
	a.log.Info("configuration reloaded", "applied", strings.Join(r.Applied, ", "), "needs_restart", strings.Join(r.NeedsRestart, ", "))
	return r, nil
}

// replace prepares everything that can fail before it puts anything in place.
func (a *App) replace(cfg config.Config) (r Reloaded, err error) {
	if problems := cfg.Validate(); len(problems) > 0 { // Load has found them already, but not every caller has it from there
		return r, errs.Wrap(errs.ConfigInvalid, sharedconfig.Problems(problems), "the configuration")
	}
	if len(cfg.Listeners) == 0 {
		return r, errs.New(errs.ConfigInvalid, "listeners: none; at least one has to stay")
	}
	if a.stopping.begun() {
		return r, errs.New(errs.ShuttingDown, "the sidecar is stopping")
	}
	pool, err := a.poolConfig(cfg)
	if err != nil {
		return r, err
	}
	token, err := newTokenSource(cfg.Gateway)
	if err != nil {
		return r, err
	}
	before := a.config()
	plan, err := a.plan(cfg)
	if err != nil {
		return r, err
	}
	if a.opts.SetLevel != nil && cfg.Log.Level != before.Log.Level { // one that was set by the API stays
		if err := a.opts.SetLevel(cfg.Log.Level); err != nil {
			plan.undo()
			return r, err
		}
	}
	a.token.replace(token)
	if err := a.pool.Reconfigure(pool); err != nil { // it was validated
		plan.undo()
		return r, err
	}
	a.queue.Configure(queueConfig(cfg.Queue, a))
	a.apply(plan)
	r.Applied, r.NeedsRestart = sharedconfig.Split(sharedconfig.Diff(before, cfg), reloadable())
	cfg.StateFile, cfg.Spool, cfg.Admin, cfg.Log.Format = before.StateFile, before.Spool, before.Admin, before.Log.Format
	a.mu.Lock()
	a.cfg = cfg
	a.mu.Unlock()
	a.tryAgain()
	return r, nil
}

// tryAgain ends having given up: what was reloaded, or a file that it names, may have been the reason.
func (a *App) tryAgain() {
	if errors.Is(a.pool.Usable(), errs.GaveUp) {
		a.pool.Reconnect()
	}
}

// listenerPlan is what becomes of the listeners, in the order of the configuration.
type listenerPlan struct {
	cfg   config.Config
	steps []listenerStep
	gone  []bound
}

type listenerStep struct {
	want  config.Listener
	have  *bound             // at the same address; nil: fresh is new
	fresh *listener.Listener // bound already
}

// undo closes what was bound.
func (p listenerPlan) undo() {
	for _, s := range p.steps {
		if s.fresh != nil {
			s.fresh.StopAccepting()
		}
	}
}

// plan binds the addresses that are new.
func (a *App) plan(cfg config.Config) (p listenerPlan, err error) {
	p.cfg = cfg
	left := a.bound()
	for _, want := range cfg.Listeners {
		if want.Delivery == config.DeliverySpool && a.spool == nil {
			p.undo()
			return p, errs.New(errs.ConfigInvalid, "listener %s: delivery: spool needs a restart, since no listener had it at the start", want.Name)
		}
		step := listenerStep{want: want}
		if i := slices.IndexFunc(left, func(b bound) bool { return sameAddress(b.cfg, want) }); i >= 0 {
			step.have = &left[i]
			left = append(append([]bound{}, left[:i]...), left[i+1:]...)
		} else if step.fresh, err = listener.New(a.listenerConfig(cfg, want)); err != nil {
			p.undo()
			return p, err
		}
		p.steps = append(p.steps, step)
	}
	p.gone = left
	return p, nil
}

// sameAddress says whether a socket can go over from one to the other. Where any port will do, the name tells.
func sameAddress(have, want config.Listener) bool {
	return have.Listen == want.Listen && (!config.TakesAnyPort(want.Listen) || have.Name == want.Name)
}

// apply puts the plan in place.
func (a *App) apply(p listenerPlan) {
	var now []bound
	var retired, fresh []*listener.Listener
	for _, s := range p.steps {
		switch {
		case s.fresh != nil:
			now, fresh = append(now, bound{s.fresh, s.want}), append(fresh, s.fresh)
		case s.have.cfg == s.want && !a.queueShared(p.cfg):
			now = append(now, *s.have)
		default:
			next, err := s.have.HandOver(a.listenerConfig(p.cfg, s.want))
			if err != nil { // it has stopped accepting, since the sidecar is stopping
				a.log.Warn("listener stays as it was", logging.Error(err)...)
				now = append(now, *s.have)
				continue
			}
			now, fresh, retired = append(now, bound{next, s.want}), append(fresh, next), append(retired, s.have.Listener)
		}
	}
	for _, b := range p.gone {
		b.StopAccepting()
		retired = append(retired, b.Listener)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = now
	a.retired = append(slices.DeleteFunc(a.retired, func(l *listener.Listener) bool { return l.Active() == 0 }), retired...)
	for _, l := range fresh {
		if a.group != nil {
			a.group.Go("listener", func(context.Context) error { return l.Serve() })
		}
	}
}

// queueShared says whether what all listeners have in common has changed.
func (a *App) queueShared(cfg config.Config) bool {
	return a.config().Queue.EarlyBytes != cfg.Queue.EarlyBytes
}

// effective is what GET /api/config answers.
func (a *App) effective() []sharedconfig.Entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.loaded.Entries()
}
