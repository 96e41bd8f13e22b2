package admin

import (
	"cmp"
	"slices"

	"fairlead/shared/errs"
)

func (a *api) effective(*call, input) (any, error) { return List[Setting](a.cfg.Effective()), nil }

func (a *api) live(c *call, in input) (any, error) {
	return Present{a.cfg.Live(in.query.(*LiveQuery).After), c.caller.role}, nil
}

func (a *api) events(_ *call, in input) (any, error) {
	return a.cfg.Events(in.query.(*EventQuery).After), nil
}

func (a *api) tunnelList(c *call, in input) (any, error) {
	q := in.query.(*TunnelQuery)
	onRoute, err := a.tunnelsOn(q.Route)
	if err != nil {
		return nil, err
	}
	keep := func(t Tunnel) bool { return is(q.Tenant, t.Tenant) && (q.Route == "" || onRoute[t.ID]) }
	return listed(c, filter(a.cfg.Tunnels(), keep), func(t Tunnel) place { return placeOf(t.Since, t.ID, "") }, q.After, q.Limit)
}

// tunnelsOn are the tunnels that have a stream to a route; empty: nobody asks.
func (a *api) tunnelsOn(route string) (map[string]bool, error) {
	if route == "" {
		return nil, nil
	}
	if a.cfg.Streams == nil {
		return nil, errs.New(errs.BadRequest, `this gateway cannot select by "route"`)
	}
	on := map[string]bool{}
	for s := range a.cfg.Streams() {
		if s.Route == route {
			on[s.Tunnel] = true
		}
	}
	return on, nil
}

func (a *api) tunnel(c *call, _ input) (any, error) {
	id := c.r.PathValue("id")
	for t := range a.cfg.Tunnels() {
		if t.ID == id {
			return t, nil
		}
	}
	return nil, errs.New(errs.NotFound, "there is no tunnel %.64q", id)
}

func (a *api) endTunnel(c *call, _ input) (any, error) {
	return nil, a.cfg.EndTunnel(c.r.PathValue("id"))
}

func (a *api) streamList(c *call, in input) (any, error) {
	q := in.query.(*StreamQuery)
	keep := func(s Stream) bool {
		return is(q.Tenant, s.Tenant) && is(q.Tunnel, s.Tunnel) && is(q.Route, s.Route) && is(q.Backend, s.Backend)
	}
	return listed(c, filter(a.cfg.Streams(), keep), func(s Stream) place { return placeOf(s.Since, s.Tunnel, s.ID) }, q.After, q.Limit)
}

func (a *api) endStream(c *call, _ input) (any, error) {
	return nil, a.cfg.EndStream(c.r.PathValue("tunnel"), c.r.PathValue("id"))
}

func (a *api) tenantList(c *call, in input) (any, error) {
	q := in.query.(*TenantQuery)
	return listed(c, a.cfg.Tenants(), func(t Tenant) place { return place{A: t.Tenant} }, q.After, q.Limit)
}

func (a *api) backendList(*call, input) (any, error) { return List[Backend](a.cfg.Backends()), nil }

func (a *api) backend(c *call, _ input) (any, error) {
	name := c.r.PathValue("name")
	for _, b := range a.cfg.Backends() {
		if b.Name == name {
			return b, nil
		}
	}
	return nil, errs.New(errs.NotFound, "there is no backend %.64q", name)
}

func (a *api) setBreaker(c *call, in input) (any, error) {
	return Done{}, a.cfg.SetBreaker(c.r.PathValue("name"), in.body.(*BreakerRequest).Mode, c.caller.name)
}

func (a *api) revocationList(*call, input) (any, error) {
	list := slices.Clone(a.cfg.Revocations())
	slices.SortFunc(list, func(a, b Revocation) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return List[Revocation](list), nil
}

func (a *api) revoke(c *call, in input) (any, error) {
	return a.cfg.Revoke(c.caller.name, *in.body.(*RevocationRequest))
}

func (a *api) unrevoke(c *call, _ input) (any, error) {
	return nil, a.cfg.Unrevoke(c.r.PathValue("id"))
}

func (a *api) testPolicy(_ *call, in input) (any, error) {
	q := in.body.(*PolicyQuestion)
	return a.cfg.TestPolicy(q.Tenant, q.Route), nil
}

func (a *api) reload(c *call, _ input) (any, error) { return a.cfg.Reload(c.caller.name) }

func (a *api) drain(*call, input) (any, error) {
	a.cfg.Drain()
	return Done{}, nil
}

func (a *api) level(*call, input) (any, error) { return LogLevel{a.cfg.Level()}, nil }

func (a *api) setLevel(_ *call, in input) (any, error) {
	if err := a.cfg.SetLevel(in.body.(*LogLevel).Level); err != nil {
		return nil, errs.Wrap(errs.BadRequest, err, "setting the log level")
	}
	return Done{}, nil
}
