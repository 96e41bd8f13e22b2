package testbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// TinyproxyConfig says how tinyproxy runs.
type TinyproxyConfig struct {
	Dir      string // for its configuration and log; must exist
	User     string // without spaces; empty: it asks for nothing
	Password string // without spaces
}

// Tinyproxy is a running HTTP proxy that clients ask to CONNECT them.
type Tinyproxy struct {
	cfg  TinyproxyConfig
	path string
	mu   sync.Mutex // guards what follows
	addr string
	proc *process // nil while it does not run
}

// StartTinyproxy starts tinyproxy and returns when it answers. ctx bounds the start only.
func StartTinyproxy(ctx context.Context, cfg TinyproxyConfig) (*Tinyproxy, error) {
	path, ok := serverPath("tinyproxy")
	if !ok {
		return nil, errors.New("this machine has no tinyproxy: install it")
	}
	p := &Tinyproxy{cfg: cfg, path: path}
	for attempt := 1; ; attempt++ {
		addr, err := unusedAddr()
		if err != nil {
			return nil, err
		}
		p.addr = addr
		err = p.Start(ctx)
		if err == nil {
			return p, nil
		}
		if !taken(err) || attempt == portAttempts {
			return nil, err
		}
	}
}

// Start starts a stopped proxy again, at the same address.
func (p *Tinyproxy) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc != nil {
		return fmt.Errorf("tinyproxy at %s already runs", p.addr)
	}
	config := filepath.Join(p.cfg.Dir, "tinyproxy.conf")
	if err := os.WriteFile(config, []byte(p.configuration()), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(p.logFile(), nil, 0o600); err != nil {
		return err
	}
	proc, err := startProcess(p.logFile(), p.path, "-d", "-c", config)
	if err != nil {
		return err
	}
	if err := proc.waitUntil(ctx, p.answers); err != nil {
		proc.kill()
		return err
	}
	p.proc = proc
	return nil
}

func (p *Tinyproxy) configuration() string {
	host, port, _ := net.SplitHostPort(p.addr) // an address of unusedAddr has both
	lines := []string{"Port " + port, "Listen " + host, "Timeout 3600", "MaxClients 200", "LogLevel Connect", "Allow 127.0.0.1"}
	if p.cfg.User != "" {
		lines = append(lines, "BasicAuth "+p.cfg.User+" "+p.cfg.Password)
	}
	return strings.Join(lines, "\n") + "\n"
}

// answers returns nil when tinyproxy answers a request that it does not serve, asked on a connection of its own.
func (p *Tinyproxy) answers() error {
	conn, err := net.DialTimeout("tcp", p.addr, probeTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if server := answer.Header.Get("Server"); !strings.HasPrefix(server, "tinyproxy") {
		return fmt.Errorf("%s answers as %q", p.addr, server)
	}
	return nil
}

// Addr is "127.0.0.1:port".
func (p *Tinyproxy) Addr() string { return p.addr }

// URL is the proxy's, with a name and password if user is not empty.
func (p *Tinyproxy) URL(user, password string) string {
	u := url.URL{Scheme: "http", Host: p.addr}
	if user != "" {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// Connects counts the requests to CONNECT to an address ("host:port") since the last start, whether they were granted or
// not.
func (p *Tinyproxy) Connects(addr string) int {
	return strings.Count(p.Log(), ": CONNECT "+addr+" ")
}

// Log is what tinyproxy has written since its last start.
func (p *Tinyproxy) Log() string {
	raw, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func (p *Tinyproxy) logFile() string { return filepath.Join(p.cfg.Dir, "tinyproxy.log") }

// Stop ends the proxy and all connections through it. It may be started again.
func (p *Tinyproxy) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return
	}
	p.proc.kill() // asked to end, it waits for connections
	p.proc = nil
}
