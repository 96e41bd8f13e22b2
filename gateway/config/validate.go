package config

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"fairlead/shared/config"
	"fairlead/shared/glob"
)

// Validate returns everything that is wrong and that the struct's tags cannot say.
func (c Config) Validate() []config.Problem {
	var check config.Check
	check.Listen("listen", c.Listen, false)
	for i, cidr := range c.TrustedProxies {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			check.Refuse(config.At("trusted_proxies", i), "allowed: a network such as 10.0.0.0/8 or fd00::/8")
		}
	}
	c.TLS.validate(&check)
	c.Auth.validate(&check)
	c.validateBackends(&check)
	c.validateRoutes(&check)
	c.validatePolicy(&check)
	c.Limits.validate(&check)
	c.Tunnel.Validate(&check, "tunnel")
	c.Store.validate(&check)
	c.Peer.validate(&check, c.Store)
	c.Admin.validate(&check)
	return check.Problems
}

func (t TLS) validate(check *config.Check) {
	for _, f := range []struct{ key, value string }{{"tls.cert_file", t.CertFile}, {"tls.key_file", t.KeyFile}, {"tls.client_ca_file", t.ClientCAFile}} {
		switch {
		case f.key == "tls.client_ca_file" && !t.Disabled:
		case t.Disabled && f.value != "":
			check.Refuse(f.key, "allowed: nothing, since tls.disabled is true")
		case !t.Disabled && f.value == "":
			check.Refuse(f.key, "required, unless tls.disabled is true")
		}
	}
}

func (c Config) validateBackends(check *config.Check) {
	for _, name := range slices.Sorted(maps.Keys(c.Backends)) {
		b, key := c.Backends[name], "backends."+name
		check.Dial(key+".address", b.Address)
		if b.CertificateFile != "" && b.KeyFile == "" {
			check.Refuse(key+".certificate_file", "allowed: only together with key_file")
		}
		if b.Identity.CAKeyFile != "" && b.KeyFile != "" {
			check.Refuse(key+".identity.ca_key_file", "allowed: instead of key_file, not together with it")
		}
		if b.Identity.CAKeyFile != "" && len(b.Identity.Principals) == 0 {
			check.Refuse(key+".identity.principals", "allowed: at least one; without any, no backend accepts the certificate")
		}
		if b.Dialing.QueuePerTenant > b.Dialing.Queue {
			check.Refuse(key+".dialing.queue_per_tenant", "allowed: up to dialing.queue, which is %d", b.Dialing.Queue)
		}
	}
}

func (c Config) validateRoutes(check *config.Check) {
	for _, name := range slices.Sorted(maps.Keys(c.Routes)) {
		r, key := c.Routes[name], "routes."+name
		if _, ok := c.Backends[r.Backend]; !ok {
			check.Refuse(key+".backend", "no such backend; allowed: %s", names(c.Backends))
		}
		switch {
		case r.Mode == ModeForward:
			check.Dial(key+".target", r.Target)
		case r.Target != "":
			check.Refuse(key+".target", "allowed: nothing, since the mode is %s; a target needs mode: %s", r.Mode, ModeForward)
		}
	}
	c.validateForwarding(check)
}

// validateForwarding wants credentials and host keys of each backend that a route in mode forward uses, once for each.
func (c Config) validateForwarding(check *config.Check) {
	usedBy := make(map[string]string)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(c.Routes))) {
		if r := c.Routes[name]; r.Mode == ModeForward {
			usedBy[r.Backend] = name
		}
	}
	for _, name := range slices.Sorted(maps.Keys(usedBy)) {
		b, ok := c.Backends[name]
		if !ok {
			continue
		}
		needs := []struct{ key, value string }{{"user", b.User}, {"key_file", b.KeyFile + b.Identity.CAKeyFile}}
		if b.HostKeys.Mode != HostKeysFirstUse {
			needs = append(needs, struct{ key, value string }{"host_keys.known_hosts_file", b.HostKeys.KnownHostsFile})
		}
		for _, n := range needs {
			if n.value == "" {
				check.Refuse("backends."+name+"."+n.key, "required, since route %s uses mode: %s", usedBy[name], ModeForward)
			}
		}
	}
}

func (c Config) validatePolicy(check *config.Check) {
	for i, rule := range c.Policy {
		key := config.At("policy", i)
		if len(rule.Tenants) == 0 {
			check.Refuse(key+".tenants", "allowed: at least one tenant or glob")
		}
		for j, tenants := range rule.Tenants {
			if !validGlob(tenants) {
				check.Refuse(config.At(key+".tenants", j), "allowed: a tenant such as payments/orders, or a glob such as payments/*")
			}
		}
		if len(rule.Routes) == 0 {
			check.Refuse(key+".routes", "allowed: at least one route, or *")
		}
		for j, route := range rule.Routes {
			if _, ok := c.Routes[route]; !ok && route != "*" {
				check.Refuse(config.At(key+".routes", j), "no such route; allowed: * and %s", names(c.Routes))
			}
		}
	}
}

func (a Admin) validate(check *config.Check) {
	names := make(map[string]bool)
	for i, t := range a.Tokens {
		key := config.At("admin.tokens", i)
		if check.Required(key+".name", t.Name); names[t.Name] && t.Name != "" {
			check.Refuse(key+".name", "used already")
		}
		names[t.Name] = true
		check.Required(key+".file", t.File)
	}
	if a.Listen == "" {
		return
	}
	check.Listen("admin.listen", a.Listen, false)
	host, _, err := net.SplitHostPort(a.Listen)
	if err == nil && a.TokenFile == "" && len(a.Tokens) == 0 && !Loopback(host) {
		check.Refuse("admin.token_file", "this or admin.tokens is required, since admin.listen can be reached from other machines")
	}
}

// Loopback reports whether only programs on the same machine reach what listens on host.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (l Limits) validate(check *config.Check) {
	for i, e := range l.Exempt {
		key := config.At("limits.exempt", i)
		if len(e.Tenants) == 0 && len(e.Addresses) == 0 {
			check.Refuse(key, "allowed: tenants, addresses or both; without any, nobody is exempt")
		}
		for j, pattern := range e.Tenants {
			if !validGlob(pattern) {
				check.Refuse(config.At(key+".tenants", j), "allowed: a tenant such as payments/orders, or a glob such as payments/*")
			}
		}
		for j, cidr := range e.Addresses {
			if _, err := netip.ParsePrefix(cidr); err != nil {
				check.Refuse(config.At(key+".addresses", j), "allowed: a network such as 10.0.0.0/8 or fd00::/8")
			}
		}
	}
}

// names lists the entries of a map, for problems.
func names[V any](m map[string]V) string {
	if len(m) == 0 {
		return "none is configured"
	}
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}

func validGlob(pattern string) bool {
	_, err := glob.Compile(pattern)
	return err == nil
}
