package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/ws"
)

// path is the way to one endpoint, as far as it was tried.
type path struct {
	r        *run
	endpoint *url.URL
	target   string   // host:port of the endpoint
	proxy    *url.URL // nil: none
	why      string   // what decided about the proxy
	first    string   // host:port that is connected to: the proxy's, or target
	attempt  attempt
}

// endpoint tries the way to one endpoint, hop by hop, and with the first one that works the routes.
func (r *run) endpoint(raw string) {
	u, err := url.Parse(raw)
	if err != nil {
		return // the configuration was validated
	}
	if u.Path == "" {
		u.Path = "/" // else what is joined to it has no beginning
	}
	p := &path{r: r, endpoint: u, target: hostPort(u)}
	p.chooseProxy()
	reached := p.dns()
	if !r.built {
		p.skipFrom(HopTLS, HopFiles)
		return
	}
	if !reached {
		p.skipFrom(HopProxy, HopTCP)
		return
	}
	p.dial()
	switch {
	case !p.proxied():
		p.skipFrom(HopTLS, HopProxy)
	case !p.secured():
		p.clock() // also then: a clock that is off may be why
		p.skipFrom(HopUpgrade, HopTLS)
	default:
		p.clock()
		p.beyond()
	}
}

// beyond is what comes after TLS.
func (p *path) beyond() {
	if !p.upgraded() {
		p.skipFrom(HopToken, HopUpgrade)
		return
	}
	if !p.admitted() {
		p.skipFrom(HopTunnel, HopToken)
		return
	}
	c := p.carrier()
	if c == nil {
		p.skipFrom(HopRoundTrip, HopTunnel)
		return
	}
	defer c.close()
	p.measure(c)
	if !p.r.routed {
		p.r.routed = true
		p.r.tryRoutes(c)
	}
}

// skipFrom adds the hops of the way to the endpoint from one on: they cannot be tried for want of another.
func (p *path) skipFrom(hop, needs string) {
	found := false
	for _, h := range []string{HopProxy, HopTLS, HopClock, HopUpgrade, HopToken, HopTunnel, HopRoundTrip, HopTransfer} {
		if found = found || h == hop; found {
			p.r.skip(h, p.target, needs)
		}
	}
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"wss": "443", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	if port == "" {
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// dns resolves the name of what is connected to, and then tries TCP to each of its addresses.
func (p *path) dns() bool {
	host, port, _ := net.SplitHostPort(p.first) // made by JoinHostPort
	var ips []netip.Addr
	known := p.r.probe(HopDNS, host, func(ctx context.Context, res *Result) error {
		if ip, err := netip.ParseAddr(host); err == nil {
			ips = []netip.Addr{ip}
			res.Data["addresses"] = []string{ip.String()}
			res.say("an address already")
			return nil
		}
		var err error
		if ips, err = p.r.resolver().LookupNetIP(ctx, "ip", host); err != nil {
			return errs.Wrap(errs.DNSFailed, err, "cannot resolve %s", host)
		}
		if len(ips) == 0 {
			return errs.New(errs.DNSFailed, "%s has no addresses", host)
		}
		names := make([]string, len(ips))
		for i, ip := range ips {
			ips[i] = ip.Unmap()
			names[i] = ips[i].String()
		}
		res.Data["addresses"] = names
		res.say("%s", strings.Join(names[:min(len(names), maxAddresses)], ", "))
		if p.proxy != nil {
			res.say("the egress proxy; the endpoint's name is resolved there")
		}
		return nil
	})
	if !known {
		p.r.skip(HopTCP, p.first, HopDNS)
		return false
	}
	return p.tcp(ips[:min(len(ips), maxAddresses)], port)
}

// maxAddresses bounds how many addresses of a name are tried.
const maxAddresses = 16

// tcp connects to each address, all at once. One that answers is enough for what comes after.
func (p *path) tcp(ips []netip.Addr, port string) bool {
	type outcome struct {
		took time.Duration
		err  error
	}
	outcomes := make([]chan outcome, len(ips))
	ctx, cancel := context.WithTimeout(p.r.ctx, p.r.cfg.Timeout)
	defer cancel()
	for i, ip := range ips {
		outcomes[i] = make(chan outcome, 1)
		go func() {
			start := time.Now()
			c, err := p.r.dialTCP(ctx, net.JoinHostPort(ip.String(), port))
			took := time.Since(start)
			if err == nil {
				c.Close()
			}
			outcomes[i] <- outcome{took, err}
		}()
	}
	reached := false
	var failures []Result
	for i, ip := range ips {
		o := <-outcomes[i]
		res := Result{Hop: HopTCP, Target: net.JoinHostPort(ip.String(), port), Data: map[string]any{}}
		res.took(o.took)
		switch {
		case o.err == nil:
			res.say("connected")
			reached = p.r.add(res)
		case p.r.over():
			p.r.interrupted(res)
		default:
			res.failed(errs.Wrap(errs.DialFailed, o.err, "cannot connect"))
			failures = append(failures, res)
		}
	}
	for _, res := range failures { // an address that does not answer is no failure while another does
		if reached {
			res.Status = Warn
		}
		p.r.add(res)
	}
	return reached
}

// resolver is the one of tunnels.
func (r *run) resolver() *net.Resolver {
	if d := r.parts.Dialer; d != nil && d.Resolver != nil {
		return d.Resolver
	}
	return net.DefaultResolver
}

func (r *run) dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	if d := r.parts.Dialer; d != nil && d.DialTCP != nil {
		return d.DialTCP(ctx, "tcp", addr)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

// dialer is the one of tunnels, with the time of a probe.
func (r *run) dialer() ws.Dialer {
	d := *r.parts.Dialer
	d.Timeout = r.cfg.Timeout
	return d
}

// url is an address at the endpoint.
func (p *path) url(elements ...string) string { return p.endpoint.JoinPath(elements...).String() }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }
