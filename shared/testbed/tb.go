package testbed

import (
	"context"
	"path/filepath"

	"fairlead/shared/testbed/fault"
)

// TB is what of testing.TB the functions below need: this package is part of a command too and does not import testing.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	TempDir() string
	Failed() bool
}

// NewSSHD starts OpenSSH's server until the test ends. Its log is shown when the test fails.
func NewSSHD(tb TB, cfg SSHDConfig) *SSHD {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	s, err := StartSSHD(context.Background(), cfg)
	must(tb, err)
	tb.Cleanup(func() {
		s.Stop()
		if tb.Failed() {
			tb.Logf("log of sshd at %s:\n%s", s.Addr(), s.Log())
		}
	})
	return s
}

// NewEmbedded starts the embedded SSH server until the test ends.
func NewEmbedded(tb TB) *Embedded {
	tb.Helper()
	e, err := StartEmbedded(EmbeddedConfig{Dir: tb.TempDir()})
	must(tb, err)
	tb.Cleanup(e.Stop)
	return e
}

// NewRedis starts Redis on a TCP port until the test ends.
func NewRedis(tb TB) *Redis {
	tb.Helper()
	return NewRedisWith(tb, RedisConfig{})
}

// NewRedisWith starts Redis until the test ends. Its log is shown when the test fails.
func NewRedisWith(tb TB, cfg RedisConfig) *Redis {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	r, err := StartRedis(context.Background(), cfg)
	must(tb, err)
	tb.Cleanup(func() {
		_ = r.Continue() // it cannot end in good order while it is paused; that it has ended is no harm
		r.Stop()
		if tb.Failed() {
			tb.Logf("log of Redis at %s:\n%s", r.Addr(), tail(filepath.Join(cfg.Dir, "redis.log")))
		}
	})
	return r
}

// NewNginx starts nginx as an ingress until the test ends. Its log is shown when the test fails.
func NewNginx(tb TB, cfg IngressConfig) *Ingress {
	tb.Helper()
	return newIngress(tb, StartNginx, cfg)
}

// NewHAProxy starts HAProxy as an ingress until the test ends. Its log is shown when the test fails.
func NewHAProxy(tb TB, cfg IngressConfig) *Ingress {
	tb.Helper()
	return newIngress(tb, StartHAProxy, cfg)
}

func newIngress(tb TB, start func(context.Context, IngressConfig) (*Ingress, error), cfg IngressConfig) *Ingress {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	i, err := start(context.Background(), cfg)
	must(tb, err)
	tb.Cleanup(func() {
		i.Stop()
		if tb.Failed() {
			tb.Logf("log of %s at %s:\n%s", i.dialect.name, i.Addr(), i.Log())
		}
	})
	return i
}

// NewTinyproxy starts tinyproxy until the test ends. Its log is shown when the test fails.
func NewTinyproxy(tb TB, cfg TinyproxyConfig) *Tinyproxy {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	p, err := StartTinyproxy(context.Background(), cfg)
	must(tb, err)
	tb.Cleanup(func() {
		p.Stop()
		if tb.Failed() {
			tb.Logf("log of tinyproxy at %s:\n%s", p.Addr(), p.Log())
		}
	})
	return p
}

// NewTestIssuer makes an issuer whose files live until the test ends. algorithm is as in IssuerConfig.
func NewTestIssuer(tb TB, algorithm string) *Issuer {
	tb.Helper()
	i, err := NewIssuer(IssuerConfig{Algorithm: algorithm, Dir: tb.TempDir()})
	must(tb, err)
	return i
}

// NewTestCA makes a CA, and a certificate for servers on this machine, that live until the test ends.
func NewTestCA(tb TB) (*CA, *Certificate) {
	tb.Helper()
	ca, err := NewCA(tb.TempDir())
	must(tb, err)
	cert, err := ca.Issue(CertificateConfig{})
	must(tb, err)
	return ca, cert
}

// NewProxy starts a fault-injecting proxy in front of target ("host:port") until the test ends.
func NewProxy(tb TB, target string) *fault.Proxy {
	tb.Helper()
	p, err := fault.New(fault.Config{Target: target})
	must(tb, err)
	tb.Cleanup(p.Close)
	return p
}

func must(tb TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("testbed: %v", err)
	}
}
