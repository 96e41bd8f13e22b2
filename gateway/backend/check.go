package backend

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/telemetry"
)

// check finds everything that is wrong, in one joined error.
func (cfg *Config) check() error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, errs.New(errs.ConfigInvalid, format, args...))
	}
	forwarded := make(map[string]bool)
	routes := make(map[string]bool)
	for _, r := range cfg.Routes {
		checkName(bad, "route", r.Name, routes)
		checkRoute(bad, r)
		forwarded[r.Backend] = forwarded[r.Backend] || r.Mode == Forward
	}
	backends := make(map[string]bool)
	for _, b := range cfg.Backends {
		checkName(bad, "backend", b.Name, backends)
		if err := checkAddress(b.Address); err != nil {
			bad("backends.%s.address is %q: %v", b.Name, b.Address, err)
		}
		if b.DialTimeout < 0 {
			bad("backends.%s.dial_timeout is negative", b.Name)
		}
		b.Dialing.check(bad, b.Name)
		if b.Health.Interval < 0 || b.Health.Timeout < 0 {
			bad("backends.%s.health has a negative duration", b.Name)
		}
		if b.Warm < 0 {
			bad("backends.%s.warm is %d: it cannot be negative", b.Name, b.Warm)
		}
		if forwarded[b.Name] {
			err := errors.Join(b.checkHostKeys(bad), b.checkLogin(bad, cfg.Instance)) // on its own: they append too
			problems = append(problems, err)
		}
	}
	for _, r := range cfg.Routes {
		if !backends[r.Backend] {
			bad("routes.%s.backend is %q: there is no such backend", r.Name, r.Backend)
		}
	}
	p := cfg.Pool
	if min(p.ChannelsPerConnection, p.Connections, p.TenantConnections) < 0 || min(p.KeepaliveTimeout, p.Idle, p.WarmFor, cfg.SlowDial) < 0 {
		bad("a number or duration of ssh_pool is negative")
	}
	return errors.Join(problems...)
}

func checkName(bad func(string, ...any), what, name string, seen map[string]bool) {
	if name == "" {
		bad("a %s has no name", what)
	} else if err := telemetry.ValidLabelValue(name); err != nil {
		bad("the name of %s %q: %v", what, name, err)
	}
	if seen[name] {
		bad("there are two %ss named %q", what, name)
	}
	seen[name] = true
}

func checkRoute(bad func(string, ...any), r Route) {
	switch r.Mode {
	case Passthrough:
		if r.Target != "" {
			bad("routes.%s.target is %q: only routes with mode forward have a target", r.Name, r.Target)
		}
	case Forward:
		if err := checkAddress(r.Target); err != nil {
			bad("routes.%s.target is %q: %v", r.Name, r.Target, err)
		}
	default:
		bad("routes.%s.mode is %q: it can be passthrough or forward", r.Name, string(r.Mode))
	}
}

func (b *Backend) checkHostKeys(bad func(string, ...any)) error {
	mode := cmp.Or(b.HostKeyMode, Strict)
	switch {
	case mode != Strict && mode != FirstUse:
		bad("backends.%s.host_keys.mode is %q: it can be strict or first-use", b.Name, string(mode))
		return nil
	case mode == Strict && b.KnownHostsFile == "":
		bad("backends.%s.host_keys.known_hosts_file is empty: mode strict needs it", b.Name)
		return nil
	}
	_, err := b.hostFiles()
	return err
}

// maxKeyFiles keeps logins below sshd's MaxAuthTries, which is 6.
const maxKeyFiles = 5

func (b *Backend) checkLogin(bad func(string, ...any), gateway string) error {
	if b.User == "" {
		bad("backends.%s.user is empty: routes with mode forward log in", b.Name)
	}
	if b.Identity != nil {
		return b.checkIdentity(bad, gateway)
	}
	switch {
	case b.KeyFile == "":
		bad("backends.%s.key_file is empty: routes with mode forward log in", b.Name)
		return nil
	case len(b.keyFiles()) > maxKeyFiles:
		bad("backends.%s has %d key files: at most %d are tried", b.Name, len(b.keyFiles()), maxKeyFiles)
		return nil
	}
	_, err := b.signers()
	return err
}

func (b *Backend) checkIdentity(bad func(string, ...any), gateway string) error {
	if b.KeyFile != "" || b.CertificateFile != "" || len(b.MoreKeyFiles) > 0 {
		bad("backends.%s has both identity and a key_file or certificate_file: one of them is enough", b.Name)
	}
	_, err := b.Identity.namer(gateway, b.Name)
	if err := errors.Join(b.Identity.check(), err); err != nil {
		bad("backends.%s.identity: %v", b.Name, err)
	}
	if b.Identity.CAKeyFile == "" {
		return nil
	}
	_, err = b.authority()
	return err
}

// checkAddress wants host:port with a numeric port.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("it must be host:port")
	}
	if host == "" {
		return errors.New("the host is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("the port must be a number from 1 to 65535")
	}
	return nil
}

// fill sets the defaults, in copies of what the caller owns.
func (cfg *Config) fill() {
	p := &cfg.Pool
	p.ChannelsPerConnection = cmp.Or(p.ChannelsPerConnection, 10)
	p.Connections = cmp.Or(p.Connections, 3)
	p.TenantConnections = cmp.Or(p.TenantConnections, 32)
	p.Keepalive = cmp.Or(p.Keepalive, time.Minute)
	if p.KeepaliveTimeout == 0 {
		p.KeepaliveTimeout = 15 * time.Second
		if p.Keepalive > 0 {
			p.KeepaliveTimeout = min(p.KeepaliveTimeout, p.Keepalive)
		}
	}
	p.Idle = cmp.Or(p.Idle, 5*time.Minute)
	p.MaxAge = cmp.Or(p.MaxAge, time.Hour)
	p.WarmFor = cmp.Or(p.WarmFor, 15*time.Minute)
	cfg.SlowDial = cmp.Or(cfg.SlowDial, 5*time.Second)
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	backends := make([]Backend, len(cfg.Backends))
	for i, b := range cfg.Backends {
		b.HostKeyMode = cmp.Or(b.HostKeyMode, Strict)
		b.DialTimeout = cmp.Or(b.DialTimeout, 10*time.Second)
		backends[i] = b
	}
	cfg.Backends = backends
}
