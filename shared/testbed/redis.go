package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// redisGrace is how long Redis, which has nothing to save, may take to end by itself.
const redisGrace = 5 * time.Second

// RedisConfig says how Redis runs.
type RedisConfig struct {
	Dir      string    // for its log and, with Unix, its socket; must exist. A socket's path must stay below 100 bytes.
	Unix     bool      // listen on a Unix socket in Dir rather than on a TCP port of 127.0.0.1
	Password string    // default: none
	TLS      *RedisTLS // speak TLS, and nothing else; not with Unix
	Users    []string  // lines of an ACL file, "user NAME …"; the default user may do everything, unless a line says otherwise. Not with Password.
	Args     []string  // more arguments, such as "--maxmemory", "10mb"

	sentinel string // configuration file of a Sentinel: it is one
}

// RedisTLS are the files of a Redis that speaks TLS.
type RedisTLS struct {
	Cert    *Certificate // its own; it shows it also where it asks for a client's
	CA      *CA          // which signs the certificates of clients
	Clients bool         // whether clients must show one
}

// Redis is a running redis-server that keeps everything in memory.
type Redis struct {
	cfg  RedisConfig
	path string
	addr string
	mu   sync.Mutex
	proc *process
}

// RedisPath returns where the machine has redis-server.
func RedisPath() (string, bool) {
	path, err := exec.LookPath("redis-server")
	return path, err == nil
}

// StartRedis starts redis-server and returns when it answers PING. ctx bounds the start only.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	path, ok := RedisPath()
	if !ok {
		return nil, errors.New("this machine has no redis-server: install it")
	}
	r := &Redis{cfg: cfg, path: path}
	if cfg.Unix {
		r.addr = filepath.Join(cfg.Dir, "redis.sock")
		return r.started(r.Start(ctx))
	}
	for attempt := 1; ; attempt++ {
		addr, err := unusedAddr()
		if err != nil {
			return nil, err
		}
		r.addr = addr
		if err = r.Start(ctx); !taken(err) || attempt == portAttempts {
			return r.started(err)
		}
	}
}

func (r *Redis) started(err error) (*Redis, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Start starts a stopped Redis again, empty and at the same address.
func (r *Redis) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc != nil {
		return fmt.Errorf("redis at %s already runs", r.addr)
	}
	logPath := filepath.Join(r.cfg.Dir, "redis.log")
	if err := os.WriteFile(logPath, nil, 0o600); err != nil {
		return err
	}
	args, err := r.args()
	if err != nil {
		return err
	}
	proc, err := startProcess(logPath, r.path, args...)
	if err != nil {
		return err
	}
	if err := proc.waitUntil(ctx, r.Ping); err != nil {
		proc.kill()
		return err
	}
	r.proc = proc
	return nil
}

// args writes the ACL file, if there is to be one.
func (r *Redis) args() ([]string, error) {
	var args []string
	if r.cfg.sentinel != "" {
		args = append(args, r.cfg.sentinel, "--sentinel", "--daemonize", "no", "--dir", r.cfg.Dir)
	} else {
		args = append(args, "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", r.cfg.Dir)
	}
	if r.cfg.Unix {
		args = append(args, "--port", "0", "--unixsocket", r.addr, "--unixsocketperm", "700")
	} else {
		host, port, err := net.SplitHostPort(r.addr)
		if err != nil {
			return nil, err
		}
		args = append(args, r.cfg.ports(host, port)...)
	}
	if r.cfg.Password != "" {
		args = append(args, "--requirepass", r.cfg.Password)
	}
	if r.cfg.Users != nil {
		file := filepath.Join(r.cfg.Dir, "users.acl")
		if err := os.WriteFile(file, []byte(strings.Join(r.cfg.Users, "\n")+"\n"), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--aclfile", file)
	}
	return append(args, r.cfg.Args...), nil
}

// Network is "tcp" or "unix".
func (r *Redis) Network() string {
	if r.cfg.Unix {
		return "unix"
	}
	return "tcp"
}

// Addr is "127.0.0.1:port", or the path of the Unix socket.
func (r *Redis) Addr() string { return r.addr }

// Ping returns nil when Redis answers PING, asked on a connection of its own.
func (r *Redis) Ping() error {
	answer, err := r.Do("PING")
	if err == nil && answer != "PONG" {
		err = fmt.Errorf("redis answers PING with %q", answer)
	}
	return err
}

// Pause freezes Redis: it accepts connections, as the kernel does that, and answers nothing.
func (r *Redis) Pause() error { return r.signal(syscall.SIGSTOP) }

// Continue ends a Pause.
func (r *Redis) Continue() error { return r.signal(syscall.SIGCONT) }

func (r *Redis) signal(sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc == nil {
		return errExited
	}
	return r.proc.signal(sig)
}

// Kill ends Redis at once, as a crash does. It may be started again.
func (r *Redis) Kill() { r.end((*process).kill) }

// Stop ends Redis in good order. It may be started again.
func (r *Redis) Stop() { r.end(func(p *process) { p.terminate(redisGrace) }) }

func (r *Redis) end(how func(*process)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc == nil {
		return
	}
	how(r.proc)
	r.proc = nil
}
