package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// upgraded adds what the attempt says of the WebSocket upgrade, and says whether it was the gateway that answered.
func (p *path) upgraded() bool {
	a := &p.attempt
	res := Result{Hop: HopUpgrade, Target: p.target, Data: map[string]any{}}
	res.took(a.took - a.throughAt - a.tlsTook)
	switch {
	case a.err == nil:
		res.say("to %s", link.Subprotocol)
		return p.r.add(res)
	case p.r.over():
		return p.r.interrupted(res)
	case errs.From(a.err).Category() == errs.Authentication:
		res.say("the gateway answers; it refuses the token")
		return p.r.add(res)
	}
	res.failed(a.err)
	if errors.Is(a.err, errs.UpgradeFailed) {
		p.explainUpgrade(&res)
	} else {
		res.culprit = fmt.Sprintf("The likely culprit is the gateway at %s itself: %s.", p.target, res.Detail)
	}
	return p.r.add(res)
}

// explainUpgrade asks again, to find out who answers.
func (p *path) explainUpgrade(res *Result) {
	ctx, cancel := context.WithTimeout(p.r.ctx, p.r.cfg.Timeout)
	defer cancel()
	header := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"ZmFpcmxlYWQtZG9jdG9yIQ=="}, "Sec-Websocket-Protocol": {link.Subprotocol}}
	if p.r.token != "" && p.endpoint.Scheme == "wss" { // over ws the token was sent already, to whoever asked for that
		header.Set("Authorization", "Bearer "+p.r.token)
	}
	a := p.ask(ctx, question{path: "v1/tunnel", header: header})
	if a.status == 0 {
		p.silent(res, a.err)
		return
	}
	if a.status == http.StatusSwitchingProtocols {
		return // the second time it did, so what the attempt said counts
	}
	res.Data["status"], res.Data["server"], res.Data["first_line"] = a.status, a.server, a.line
	who := hopName(a.server)
	what, culprit, advice := meaning(a.status, who)
	res.Detail = fmt.Sprintf("%s answered %q instead of upgrading: %s", who, a.text, what)
	if a.line != "" {
		res.Detail += fmt.Sprintf(" (first line: %q)", a.line)
	}
	if a.location != "" {
		res.Data["location"] = a.location
		res.Detail += fmt.Sprintf(" (it redirects to %q)", a.location)
	}
	res.Advice, res.culprit = advice, culprit
}

// silent is an upgrade that nobody answered.
func (p *path) silent(res *Result, err error) {
	if timedOut(err) || p.attempt.took >= p.r.cfg.Timeout {
		res.Detail = fmt.Sprintf("the connection stands, but no answer to the upgrade came within %s", p.r.cfg.Timeout.Round(time.Millisecond))
		res.Advice = "See whether the gateway is overloaded, or whether an ingress in front of it waits for it."
	}
}

// hopName says who answered, by the Server header.
func hopName(server string) string {
	if server == "" {
		return "something that does not say its name"
	}
	lower := strings.ToLower(server)
	for _, known := range []struct{ part, kind string }{
		{"nginx", "an ingress"}, {"openresty", "an ingress"}, {"haproxy", "an ingress"}, {"envoy", "an ingress or mesh"}, {"traefik", "an ingress"},
		{"caddy", "an ingress"}, {"apache", "a web server or ingress"}, {"awselb", "a load balancer"}, {"cloudfront", "a CDN"}, {"cloudflare", "a CDN"},
		{"akamai", "a CDN"}, {"google frontend", "a load balancer"}, {"gws", "a load balancer"}, {"squid", "a proxy"}, {"tinyproxy", "a proxy"},
		{"zscaler", "a proxy"}, {"bigip", "a load balancer"}, {"big-ip", "a load balancer"}, {"microsoft-iis", "a web server"}, {"kong", "an ingress"},
	} {
		if strings.Contains(lower, known.part) {
			return fmt.Sprintf("%s (%s)", known.kind, server)
		}
	}
	return fmt.Sprintf("a server (%s)", server)
}

// meaning is what an answer other than an upgrade usually means, whom it points at, and what to do.
func meaning(status int, who string) (what, culprit, advice string) {
	switch {
	case status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		return "the gateway behind it did not answer",
			fmt.Sprintf("The likely culprit is the gateway, or the way from the ingress to it: %s answered, the gateway behind it did not.", who),
			"See whether the gateway runs and is ready, and whether the ingress leads to its Service and port, with TLS if the gateway has it."
	case status == http.StatusNotFound:
		return "it knows nothing at this address",
			fmt.Sprintf("The likely culprit is a rule that is missing in front of the gateway: %s knows nothing at this host and path.", who),
			"Check host and path of the endpoint, and that the ingress leads them to the gateway."
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return "it lets nobody through to the gateway",
			fmt.Sprintf("The likely culprit is an access rule in front of the gateway: %s refused, not the gateway.", who),
			"See the rules (addresses, web application firewall, login) of what answered: the gateway's own refusals have a code FL-…."
	case status == http.StatusProxyAuthRequired:
		return "it is a proxy that wants credentials",
			fmt.Sprintf("The likely culprit is a proxy on the way that nobody told us of: %s wants credentials.", who),
			"Set gateway.proxy with user name and password."
	case status == http.StatusTooManyRequests:
		return "it limits requests",
			fmt.Sprintf("The likely culprit is a limit in front of the gateway: %s refuses further requests.", who),
			"Wait, and raise the limit of what answered."
	case status >= 300 && status < 400:
		return "it wants the client elsewhere, as login pages do",
			fmt.Sprintf("The likely culprit is a redirect in front of the gateway: %s sends clients elsewhere.", who),
			"Use the address that it redirects to, or exempt the gateway's host from the login."
	case status >= 200 && status < 300:
		return "it is an ordinary web server, or a proxy that shows a page of its own",
			fmt.Sprintf("The likely culprit is the endpoint's address: %s answers there, which is not the gateway.", who),
			"Check host, port and path of the endpoint."
	case status == http.StatusBadRequest, status == http.StatusUpgradeRequired, status == http.StatusHTTPVersionNotSupported:
		return "the upgrade did not arrive as one",
			fmt.Sprintf("The likely culprit is what is in front of the gateway: %s does not pass upgrades on.", who),
			"Have it pass on Connection and Upgrade over HTTP/1.1: nginx needs proxy_http_version 1.1 and both headers set."
	}
	return "that is not an upgrade",
		fmt.Sprintf("The likely culprit is what answers in front of the gateway: %s.", who),
		errs.UpgradeFailed.Info().Advice
}

// admitted adds what the gateway says of the token, and says whether it took it.
func (p *path) admitted() bool {
	a := &p.attempt
	res := Result{Hop: HopToken, Target: p.target, Data: map[string]any{}}
	if a.err == nil {
		res.say("accepted")
		return p.r.add(res)
	}
	res.failed(a.err)
	switch code := res.code; {
	case p.r.noToken != nil && code == errs.TokenMissing:
		res.failedBy(p.r.noToken)
		res.Detail = "none was sent: " + res.Detail
	case code == errs.TokenInvalid && p.r.claims.Issuer != "":
		res.say("the token says issuer %s, audience %s", orNone(p.r.claims.Issuer), orNone(strings.Join(p.r.claims.Audience, ", ")))
	}
	return p.r.add(res)
}

// failedBy is failed with another error than the one that was taken over already.
func (r *Result) failedBy(err error) {
	r.Detail, r.Advice = "", ""
	r.failed(err)
}
