package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// tryRoutes asks for each route once: one open tells about the policy and about the backend, and the same stream about SSH.
func (r *run) tryRoutes(c *carrier) {
	routes := r.routes()
	if len(routes) == 0 {
		r.skipFor(HopPolicy, "", "no listener has a route; name one with --route")
	}
	for _, route := range routes {
		s, took, err := r.ask(c, route)
		if !r.allowed(route, took, err) {
			r.skip(HopBackend, route, HopPolicy)
			r.skip(HopSSH, route, HopPolicy)
			continue
		}
		if !r.connected(route, took, err) {
			r.skip(HopSSH, route, HopBackend)
			continue
		}
		r.trySSH(route, s)
		s.abort()
	}
}

// ask opens a stream to a route.
func (r *run) ask(c *carrier, route string) (stream, time.Duration, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Timeout)
	defer cancel()
	start := time.Now()
	s, err := c.open(ctx, route, link.Normal)
	return s, time.Since(start), err
}

// allowed adds whether the gateway lets us have the route.
func (r *run) allowed(route string, took time.Duration, err error) bool {
	res := Result{Hop: HopPolicy, Target: route, Data: map[string]any{}}
	e := errs.From(err)
	switch {
	case e == nil || aboutBackend(e.Code):
		res.Data["decision"] = "allowed"
		res.say("allowed")
		return r.add(res)
	case r.over():
		return r.interrupted(res)
	case e.Code == errs.RouteForbidden:
		res.Data["decision"] = "forbidden"
		res.culprit = fmt.Sprintf("The likely culprit is the gateway's policy: it does not give route %s to this tenant.", route)
	case e.Code == errs.RouteUnknown:
		res.Data["decision"] = "unknown"
		res.culprit = fmt.Sprintf("The likely culprit is the route's name: the gateway has no route %s.", route)
	case errors.Is(limited(&res, e), nil):
		res.took(took)
		r.add(res)
		return false
	}
	res.took(took)
	res.failed(e)
	return r.add(res)
}

// aboutBackend says whether a refusal comes from trying the backend, for which the policy must have allowed the route.
func aboutBackend(code errs.Code) bool { return phaseOf(code) != "" }

// phaseOf is what went wrong between the gateway and the backend; empty: something before that.
func phaseOf(code errs.Code) string {
	switch code {
	case errs.BackendUnreachable, errs.BackendTimeout:
		return "connect"
	case errs.SSHHandshake:
		return "handshake"
	case errs.HostKeyRefused:
		return "host key"
	case errs.BackendAuth, errs.KeyUnreadable:
		return "login"
	case errs.TargetRefused:
		return "target"
	case errs.CircuitOpen, errs.DialQueueFull, errs.PoolExhausted:
		return "not tried by the gateway"
	case errs.OpenTimeout, errs.BackendBroken:
		return "unknown"
	}
	return ""
}

// connected adds whether the gateway reached the backend.
func (r *run) connected(route string, took time.Duration, err error) bool {
	res := Result{Hop: HopBackend, Target: route, Data: map[string]any{}}
	res.took(took)
	if err == nil {
		res.say("the gateway connected in %s", ms(took))
		return r.add(res)
	}
	if r.over() {
		return r.interrupted(res)
	}
	phase := phaseOf(errs.CodeOf(err))
	res.Data["phase"] = phase
	res.failed(err)
	res.Detail = fmt.Sprintf("failed between the gateway and the backend (%s): %s", phase, res.Detail)
	return r.add(res)
}
