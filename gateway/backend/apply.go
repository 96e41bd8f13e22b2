package backend

import (
	"errors"
	"reflect"
	"slices"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// table is what is configured. It never changes: another one takes its place.
type table struct {
	routes   map[string]Route
	backends map[string]*remote
}

// Changes says what Apply changed, by name and sorted.
type Changes struct {
	BackendsAdded    []string
	BackendsRemoved  []string // their SSH connections end with their streams
	BackendsReplaced []string // as those removed, while new streams use new connections
	BackendsAdjusted []string // settings that leave connections alone

	RoutesAdded   []string
	RoutesRemoved []string
	RoutesMoved   []string // lead elsewhere now: mode, target, backend or the backend's address is another

	Pool bool // the bounds and times of pools
}

// Any reports whether anything changed.
func (c Changes) Any() bool { return !reflect.DeepEqual(c, Changes{}) }

// Apply makes the Set lead by another configuration while it runs, whole or not at all. It dials nothing and ends no
// stream: SSH connections that no longer fit give no new channels and end with their last. Routes that were taken away or
// moved are named in Changes, so that their streams can be ended by who has them.
//
// Errors are those of New, and errs.ShuttingDown.
func (s *Set) Apply(backends []Backend, routes []Route, pool PoolConfig) (Changes, error) {
	commit, err := s.Prepare(backends, routes, pool)
	if err != nil {
		return Changes{}, err
	}
	return commit(), nil
}

// Prepare is the part of Apply that can fail: nothing has changed until commit is called. One caller at a time.
func (s *Set) Prepare(backends []Backend, routes []Route, pool PoolConfig) (commit func() Changes, err error) {
	cfg := Config{Backends: backends, Routes: routes, Pool: pool, Instance: s.instance}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.fill()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	old := s.table.Load()
	next, changes, err := s.plan(&cfg, old)
	if err != nil {
		return nil, err
	}
	changes.Pool = *s.poolConfig() != cfg.Pool
	return func() Changes {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return Changes{}
		}
		s.equipLocked(old, next)
		s.poolNow.Store(&cfg.Pool)
		s.table.Store(next)
		s.switchLocked(old, next, changes)
		return changes
	}, nil
}

// plan makes the next table out of the configuration, with what of the old one stays.
func (s *Set) plan(cfg *Config, old *table) (*table, Changes, error) {
	next := &table{routes: make(map[string]Route, len(cfg.Routes)), backends: make(map[string]*remote, len(cfg.Backends))}
	var c Changes
	var problems []error
	for _, b := range cfg.Backends {
		before := old.backends[b.Name]
		if before != nil && reflect.DeepEqual(before.Backend, b) {
			next.backends[b.Name] = before
			continue
		}
		r, err := s.newRemote(b, before)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		next.backends[b.Name] = r
		switch {
		case before == nil:
			c.BackendsAdded = append(c.BackendsAdded, b.Name)
		case r.sameLogin(before):
			c.BackendsAdjusted = append(c.BackendsAdjusted, b.Name)
		default:
			c.BackendsReplaced = append(c.BackendsReplaced, b.Name)
		}
	}
	for name := range old.backends {
		if next.backends[name] == nil {
			c.BackendsRemoved = append(c.BackendsRemoved, name)
		}
	}
	for _, r := range cfg.Routes {
		next.routes[r.Name] = r
		before, known := old.routes[r.Name]
		switch {
		case !known:
			c.RoutesAdded = append(c.RoutesAdded, r.Name)
		case len(problems) == 0 && (before != r || old.backends[r.Backend].Address != next.backends[r.Backend].Address):
			c.RoutesMoved = append(c.RoutesMoved, r.Name)
		}
	}
	for name := range old.routes {
		if _, ok := next.routes[name]; !ok {
			c.RoutesRemoved = append(c.RoutesRemoved, name)
		}
	}
	for _, list := range [][]string{c.BackendsAdded, c.BackendsRemoved, c.BackendsReplaced, c.BackendsAdjusted, c.RoutesAdded, c.RoutesRemoved, c.RoutesMoved} {
		slices.Sort(list)
	}
	return next, c, errors.Join(problems...)
}

// newRemote makes what belongs to a backend; what belonged to it before, if anything did, goes on where it can. The rest is
// added by equipLocked, when it is certain that it is needed.
func (s *Set) newRemote(b Backend, before *remote) (*remote, error) {
	r := &remote{Backend: b}
	if b.Identity != nil {
		var err error
		if r.namer, err = b.Identity.namer(s.instance, b.Name); err != nil {
			return nil, errs.Wrap(errs.ConfigInvalid, err, "backends.%s.identity", b.Name)
		}
	}
	if before != nil {
		r.counts = before.counts
	}
	return r, nil
}

// equipLocked gives the backends of a table that is about to take its place metrics, queues and health checks, and ends
// the checks that it does not take over.
func (s *Set) equipLocked(old, next *table) {
	for name, r := range next.backends {
		before := old.backends[name]
		if r == before {
			continue
		}
		if r.counts == nil {
			r.counts = s.newCounts(name)
		}
		s.queue(r, before)
		if before != nil && before.health != nil && r.Health == before.Health && r.Address == before.Address {
			r.health = before.health
		} else {
			r.health = s.watchLocked(r)
		}
	}
	for name, before := range old.backends {
		switch now := next.backends[name]; {
		case now != nil && now.health == before.health:
		default:
			before.health.stop()
			if now == nil || now.health == nil {
				before.counts.unprobed()
			}
		}
	}
}

// switchLocked brings pools in line with the new table, and lets go of what belonged to backends that are gone.
func (s *Set) switchLocked(old, next *table, c Changes) {
	pools := make([]*pool, 0, len(s.pools))
	for _, p := range s.pools {
		pools = append(pools, p)
	}
	for _, p := range pools {
		s.movePoolLocked(p, next, c.Pool)
	}
	for _, name := range c.BackendsRemoved {
		if counts := old.backends[name].counts; counts.own {
			s.metricSets.Drop(counts.set)
		}
	}
	if c.Any() {
		s.log.Info("backends and routes were configured anew", logging.FieldComponent, "backend", "backends_added", c.BackendsAdded, "backends_removed", c.BackendsRemoved,
			"backends_replaced", c.BackendsReplaced, "backends_adjusted", c.BackendsAdjusted, "routes_added", c.RoutesAdded, "routes_removed", c.RoutesRemoved,
			"routes_moved", c.RoutesMoved, "pool", c.Pool)
	}
}

// movePoolLocked lets go of connections that do not fit any more. When the backend is another one, whoever waits asks
// again: the names of its certificates may have changed, or it may be gone.
func (s *Set) movePoolLocked(p *pool, next *table, retune bool) {
	now := next.backends[p.key.backend]
	fits := now != nil && now.sameLogin(p.b)
	if now != p.b {
		p.sendBackLocked()
	}
	if fits {
		p.b = now
	} else {
		p.stale = true
		p.epoch++
		p.outdated, p.dialing = p.outdated+p.dialing, 0
		reason := reasonReconfigured
		if now == nil {
			reason = reasonRemoved
		}
		for _, l := range slices.Clone(p.live) {
			l.retireLocked(reason)
		}
	}
	if retune {
		for _, l := range p.all() {
			select {
			case l.tune <- struct{}{}:
			default: // it will look anyway
			}
		}
	}
	p.serveLocked()
	p.forgetLocked()
}

// sameLogin reports whether SSH connections to both are the same: to the same server, as the same user, by the same means.
func (r *remote) sameLogin(other *remote) bool {
	return r == other || reflect.DeepEqual(loginOf(r.Backend), loginOf(other.Backend))
}

func loginOf(b Backend) Backend {
	b.DialTimeout, b.Dialing, b.Health, b.Warm = 0, Dialing{}, Health{}, 0
	return b
}

// names renders what the certificate for a caller says; nothing for backends without an Identity. The error is
// errs.RouteForbidden: the token has not what the backend asks for.
func (r *remote) names(who Caller) (names, error) {
	if r.namer == nil {
		return names{}, nil
	}
	n, err := r.namer.names(who)
	if err != nil {
		return names{}, errs.Wrap(errs.RouteForbidden, err, "backend %q takes certificates only, and none can be made for this token", r.Name)
	}
	return n, nil
}

// poolConfig is what pools go by now.
func (s *Set) poolConfig() *PoolConfig { return s.poolNow.Load() }
