package testbed

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// StartHAProxy starts HAProxy as an ingress, as a master with a worker, and returns when it answers. A reload has the
// master start itself anew with -sf, which tells the earlier worker to finish. ctx bounds the start only.
func StartHAProxy(ctx context.Context, cfg IngressConfig) (*Ingress, error) {
	return startIngress(ctx, dialect{
		name: "haproxy", pkg: "haproxy", reload: syscall.SIGUSR2, stop: syscall.SIGTERM, write: writeHAProxy,
		args: func(config string) []string { return []string{"-W", "-f", config} },
	}, cfg)
}

func writeHAProxy(cfg IngressConfig, addr, generation string) (string, error) {
	if err := cfg.validate(); err != nil {
		return "", err
	}
	bind := "bind " + addr
	if cfg.Certificate != nil {
		pair, err := haproxyPair(cfg)
		if err != nil {
			return "", err
		}
		bind += " ssl crt " + quoted(pair) + " alpn http/1.1 ssl-min-ver TLSv1.2"
	}
	config := filepath.Join(cfg.Dir, "haproxy.cfg")
	return config, os.WriteFile(config, []byte(haproxyConfiguration(cfg, bind, generation)), 0o600)
}

// haproxyPair writes certificate and key into one file, as HAProxy wants them.
func haproxyPair(cfg IngressConfig) (string, error) {
	cert, err := os.ReadFile(cfg.Certificate.CertFile)
	if err != nil {
		return "", err
	}
	key, err := os.ReadFile(cfg.Certificate.KeyFile)
	if err != nil {
		return "", err
	}
	pair := filepath.Join(cfg.Dir, "haproxy.pem")
	return pair, writeAtomic(pair, append(cert, key...))
}

func haproxyConfiguration(cfg IngressConfig, bind, generation string) string {
	var c strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&c, format+"\n", args...) }
	line("global")
	line("  log stderr format raw local0")
	line("  maxconn 1024")
	if cfg.Grace > 0 {
		line("  hard-stop-after %s", millis(cfg.Grace))
	}
	line("defaults")
	line("  mode http")
	line("  log global")
	line("  option httplog")
	line("  timeout connect 5s")
	line("  timeout http-request 10s")
	line("  timeout client %s", millis(ingressIdle)) // timeout tunnel wins once a connection is upgraded
	line("  timeout server %s", millis(ingressIdle))
	line("  timeout tunnel %s", millis(cfg.Idle))
	line("  option redispatch 1")                      // another upstream at once, when a cookie's does not answer
	line("  retries %d", min(len(cfg.Upstreams)-1, 1)) // it would wait a second before it tries the same one again
	line("frontend ingress")
	line("  %s", bind)
	line("  http-request return status 200 content-type text/plain string %s if { path %s }", generation, generationPath)
	line("  option forwardfor")
	line("  default_backend gateways")
	line("backend gateways")
	line("  balance roundrobin")
	if cfg.Cookie != "" {
		line("  cookie %s insert indirect nocache httponly", cfg.Cookie)
	}
	if cfg.DownPage != "" {
		for _, status := range []int{502, 503, 504} {
			line("  http-error status %d content-type text/plain string %s", status, quoted(cfg.DownPage))
		}
	}
	for n, upstream := range cfg.Upstreams {
		line("  %s", haproxyServer(cfg, n, upstream))
	}
	return c.String()
}

func haproxyServer(cfg IngressConfig, n int, upstream string) string {
	server := fmt.Sprintf("server g%d %s", n, upstream)
	if cfg.Cookie != "" {
		server += fmt.Sprintf(" cookie g%d", n)
	}
	if cfg.UpstreamCA != "" {
		server += " ssl ssl-min-ver TLSv1.3 alpn http/1.1 sni str(localhost) verifyhost localhost verify required ca-file " + quoted(cfg.UpstreamCA)
	}
	return server
}
