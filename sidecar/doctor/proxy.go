package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"fairlead/shared/errs"
)

// chooseProxy finds out by which proxy tunnels go to the endpoint, and what decides so.
func (p *path) chooseProxy() {
	p.first = p.target
	if !p.r.built || p.r.parts.Dialer.Proxy == nil {
		p.why = "no proxy is set"
		return
	}
	proxy, err := p.r.parts.Dialer.Proxy(p.request())
	switch {
	case err != nil:
		p.why = "the setting of the proxy cannot be used"
	case proxy != nil:
		p.proxy, p.first = proxy, hostPort(proxy)
		p.why = p.variable()
		if p.r.settings.Gateway.Proxy != "" {
			p.why = "gateway.proxy"
		}
	case p.r.cfg.Environ(p.variable()) != "" || p.r.cfg.Environ(strings.ToLower(p.variable())) != "":
		p.why = p.variable() + " is set, but NO_PROXY exempts this host, or it is this machine"
	default:
		p.why = "neither gateway.proxy nor " + p.variable() + " is set"
	}
}

// variable of the environment that names the proxy.
func (p *path) variable() string {
	if p.endpoint.Scheme == "ws" {
		return "HTTP_PROXY"
	}
	return "HTTPS_PROXY"
}

// request is what the choice of a proxy is asked about.
func (p *path) request() *http.Request {
	return &http.Request{Method: http.MethodGet, URL: p.web(), Host: p.target, Header: http.Header{}}
}

// web is the endpoint as a URL of HTTP.
func (p *path) web(elements ...string) *url.URL {
	u := p.endpoint.JoinPath(elements...)
	u.Scheme = map[string]string{"wss": "https", "ws": "http"}[u.Scheme]
	return u
}

// proxied adds what the attempt says of the proxy, and says whether it came past it.
func (p *path) proxied() bool {
	res := Result{Hop: HopProxy, Target: p.target, Data: map[string]any{"proxy": nil, "why": p.why}}
	if p.proxy == nil {
		res.say("direct: %s", p.why)
		if p.attempt.through || p.attempt.err == nil {
			return p.r.add(res)
		}
		p.r.add(res)
		return p.unreached()
	}
	name := p.proxy.Scheme + "://" + p.proxy.Host
	res.Target, res.Data["proxy"] = name, name
	res.took(p.attempt.throughAt)
	if p.attempt.through {
		res.say("by %s, as %s says; it connects to %s", name, p.why, p.target)
		return p.r.add(res)
	}
	if p.r.over() {
		return p.r.interrupted(res)
	}
	res.failed(p.attempt.err)
	p.explainProxy(&res)
	return p.r.add(res)
}

// explainProxy asks the proxy again, to find out what it says.
func (p *path) explainProxy(res *Result) {
	ctx, cancel := context.WithTimeout(p.r.ctx, p.r.cfg.Timeout)
	defer cancel()
	a := p.ask(ctx, question{insecure: true, onlyTLS: true}) // over ws it asks for nothing either
	if a.proxyStatus == 0 {
		return
	}
	res.Data["status"] = a.proxyStatus
	named := p.proxy.User != nil
	switch a.proxyStatus {
	case http.StatusProxyAuthRequired:
	case http.StatusUnauthorized: // what some say of a password that is wrong
		if !named {
			return
		}
	default:
		return
	}
	res.Detail = fmt.Sprintf("the proxy, set by %s, wants a user name and password (%d)", p.why, a.proxyStatus)
	if named {
		res.Detail = fmt.Sprintf("the proxy, set by %s, does not accept the user name and password of its URL (%d)", p.why, a.proxyStatus)
	}
	res.Advice = "Put user name and password into the URL of " + p.why + ": http://user:password@host:port."
	res.culprit = fmt.Sprintf("The likely culprit is the egress proxy: it wants credentials (%d).", a.proxyStatus)
}

// unreached adds that the attempt did not come as far as the TCP probe just before.
func (p *path) unreached() bool {
	res := Result{Hop: HopTCP, Target: p.target}
	if p.r.over() {
		return p.r.interrupted(res)
	}
	res.failed(p.attempt.err)
	if errors.Is(p.attempt.err, errs.DialFailed) {
		res.Detail = "a second connection failed: " + res.Detail
	}
	return p.r.add(res)
}
