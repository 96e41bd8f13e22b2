package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// nginxWorkers is how many processes of nginx serve connections.
const nginxWorkers = 2

// StartNginx starts nginx as an ingress and returns when it answers. ctx bounds the start only.
func StartNginx(ctx context.Context, cfg IngressConfig) (*Ingress, error) {
	return startIngress(ctx, dialect{
		name: "nginx", pkg: "nginx-light", reload: syscall.SIGHUP, stop: syscall.SIGTERM, write: writeNginx,
		args: func(config string) []string {
			return []string{"-p", filepath.Dir(config), "-c", config, "-e", "stderr"}
		},
	}, cfg)
}

func writeNginx(cfg IngressConfig, addr, generation string) (string, error) {
	if err := cfg.validate(); err != nil {
		return "", err
	}
	if cfg.Cookie != "" {
		return "", errors.New("nginx has no cookies that keep a client at its upstream: take HAProxy")
	}
	config := filepath.Join(cfg.Dir, "nginx.conf")
	return config, os.WriteFile(config, []byte(nginxConfiguration(cfg, addr, generation)), 0o600)
}

func nginxConfiguration(cfg IngressConfig, addr, generation string) string {
	var c strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&c, format+"\n", args...) }
	line("daemon off;")
	if os.Geteuid() == 0 {
		line("user root root;") // otherwise workers become somebody who may not write into the directory
	}
	line("worker_processes %d;", nginxWorkers)
	line("pid %s;", quoted(filepath.Join(cfg.Dir, "nginx.pid")))
	line("error_log stderr info;")
	if cfg.Grace > 0 {
		line("worker_shutdown_timeout %s;", millis(cfg.Grace))
	}
	line("events { worker_connections 1024; }")
	line("http {")
	line("access_log %s;", quoted(filepath.Join(cfg.Dir, "nginx-access.log")))
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		line("%s_temp_path %s;", what, quoted(filepath.Join(cfg.Dir, "nginx-"+what)))
	}
	line("map $http_upgrade $connection_upgrade { default upgrade; '' close; }")
	line("upstream gateways {")
	for _, upstream := range cfg.Upstreams {
		line("server %s max_fails=0;", upstream) // it is tried each time, so that it is used as soon as it is back
	}
	line("}")
	line("server {")
	line("%s", strings.Join(nginxListen(cfg, addr), "\n"))
	line("location = %s { default_type text/plain; return 200 %s; }", generationPath, generation)
	line("location / {")
	line("%s", strings.Join(nginxForward(cfg), "\n"))
	line("}\n}\n}")
	return c.String()
}

func nginxListen(cfg IngressConfig, addr string) []string {
	if cfg.Certificate == nil {
		return append([]string{"listen " + addr + ";"}, nginxDown(cfg)...)
	}
	return append([]string{
		"listen " + addr + " ssl;",
		"ssl_certificate " + quoted(cfg.Certificate.CertFile) + ";",
		"ssl_certificate_key " + quoted(cfg.Certificate.KeyFile) + ";",
		"ssl_protocols TLSv1.2 TLSv1.3;",
	}, nginxDown(cfg)...)
}

func nginxDown(cfg IngressConfig) []string {
	if cfg.DownPage == "" {
		return nil
	}
	return []string{
		"error_page 502 503 504 = @down;",
		"location @down { default_type text/plain; return 503 " + quoted(cfg.DownPage) + "; }",
	}
}

func nginxForward(cfg IngressConfig) []string {
	lines := []string{
		"proxy_pass http://gateways;",
		"proxy_http_version 1.1;",
		"proxy_set_header Upgrade $http_upgrade;",
		"proxy_set_header Connection $connection_upgrade;",
		"proxy_set_header Host $http_host;",
		"proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
		"proxy_set_header X-Forwarded-Proto $scheme;",
		"proxy_connect_timeout 5s;",
		"proxy_read_timeout " + millis(cfg.Idle) + ";",
		"proxy_send_timeout " + millis(cfg.Idle) + ";",
		"proxy_buffering off;",
	}
	if cfg.UpstreamCA != "" {
		lines[0] = "proxy_pass https://gateways;"
		lines = append(lines,
			"proxy_ssl_protocols TLSv1.3;",
			"proxy_ssl_verify on;",
			"proxy_ssl_trusted_certificate "+quoted(cfg.UpstreamCA)+";",
			"proxy_ssl_server_name on;",
			"proxy_ssl_name localhost;",
		)
	}
	return lines
}

// millis is a duration as nginx and HAProxy read it.
func millis(d time.Duration) string { return fmt.Sprintf("%dms", max(d.Milliseconds(), 1)) }

// quoted is a text as one word of a configuration of nginx or HAProxy.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "$", "").Replace(s) + `"`
}
