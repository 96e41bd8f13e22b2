package testbed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// ingressGrace is how long an ingress may take to end by itself once it is told to stop at once.
	ingressGrace = 5 * time.Second
	// ingressIdle is the idle limit where none is given: longer than any test.
	ingressIdle = time.Hour
	// generationPath is answered by the ingress itself, with the name of the configuration that it runs with. So a start
	// cannot be taken for one when another process answers at the address, nor a reload before it took effect.
	generationPath = "/.testbed/generation"
)

// IngressConfig says how an ingress runs and where it leads to. All but Dir and Upstreams may be left out.
type IngressConfig struct {
	Dir         string        // for configuration and logs; must exist
	Upstreams   []string      // "host:port", at least one; connections go to each in turn
	UpstreamCA  string        // PEM file of the CA that signed the upstreams' certificates for localhost; empty: no TLS to them
	Certificate *Certificate  // what clients see; nil: no TLS to them
	Idle        time.Duration // after which a connection without a byte is cut; default: an hour
	Grace       time.Duration // that open connections have after a reload; default: as long as they want
	Cookie      string        // name of a cookie that keeps a client at its upstream; HAProxy only
	DownPage    string        // answered, as text and with 503, when no upstream answers; empty: the program's own page
}

// dialect is what differs between the programs.
type dialect struct {
	name   string         // of the program
	pkg    string         // that has it
	reload syscall.Signal // to the first process
	stop   syscall.Signal // to the first process: ends without waiting for connections
	args   func(config string) []string
	// write writes the configuration for an address. generation is answered at generationPath.
	write func(cfg IngressConfig, addr, generation string) (config string, err error)
}

// Ingress is a running reverse proxy that carries WebSockets. Its methods may be called from any goroutine.
type Ingress struct {
	dialect dialect
	path    string

	mu     sync.Mutex // guards what follows
	cfg    IngressConfig
	addr   string
	config string
	proc   *process // nil while it does not run
}

// startIngress starts the program of a dialect at an unused address.
func startIngress(ctx context.Context, d dialect, cfg IngressConfig) (*Ingress, error) {
	path, ok := serverPath(d.name)
	if !ok {
		return nil, fmt.Errorf("this machine has no %s: install %s", d.name, d.pkg)
	}
	if cfg.Idle == 0 {
		cfg.Idle = ingressIdle
	}
	i := &Ingress{dialect: d, path: path, cfg: cfg}
	if err := i.Start(ctx); err != nil {
		return nil, err
	}
	return i, nil
}

// serverPath returns where the machine has a program that may be outside of PATH, as servers are.
func serverPath(name string) (string, bool) {
	if path, err := exec.LookPath(name); err == nil {
		return path, true
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

// Start starts a stopped ingress again: at the address that it had, or at another if that was taken meanwhile.
func (i *Ingress) Start(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.proc != nil {
		return fmt.Errorf("%s at %s already runs", i.dialect.name, i.addr)
	}
	for attempt := 1; ; attempt++ {
		if i.addr == "" {
			addr, err := unusedAddr()
			if err != nil {
				return err
			}
			i.addr = addr
		}
		err := i.start(ctx)
		if !taken(err) || attempt == portAttempts {
			return err
		}
		i.addr = ""
	}
}

// start is called with mu held.
func (i *Ingress) start(ctx context.Context) error {
	generation, err := i.configure()
	if err != nil {
		return err
	}
	// The log begins anew, so that an address that was taken earlier is not found in it again.
	if err := os.WriteFile(i.logFile(), nil, 0o600); err != nil {
		return err
	}
	proc, err := startProcess(i.logFile(), i.path, i.dialect.args(i.config)...)
	if err != nil {
		return err
	}
	if err := proc.waitUntil(ctx, i.runs(proc, generation)); err != nil {
		proc.kill()
		return err
	}
	i.proc = proc
	return nil
}

// configure writes the configuration under a new name, which it returns.
func (i *Ingress) configure() (generation string, err error) {
	generation = rand.Text()
	i.config, err = i.dialect.write(i.cfg, i.addr, generation)
	return generation, err
}

// runs returns a check whether the ingress serves with a configuration and would hear of the next one: HAProxy's master
// executes itself anew after it has started a worker, and loses the signals that come meanwhile.
func (i *Ingress) runs(proc *process, generation string) func() error {
	scheme := "http"
	transport := &http.Transport{DisableKeepAlives: true}
	if i.cfg.Certificate != nil {
		scheme = "https"
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asks whether it is there, and says nothing
	}
	client := &http.Client{Transport: transport, Timeout: probeTimeout}
	url := scheme + "://" + i.addr + generationPath
	return func() error {
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		if err == nil && string(body) != generation {
			err = fmt.Errorf("%s still runs with its earlier configuration, or is another process", i.addr)
		}
		if err == nil && !catches(proc.pid(), i.dialect.reload) {
			err = fmt.Errorf("%s does not catch signals yet", i.dialect.name)
		}
		return err
	}
}

// Reload changes the configuration, if change is not nil, and has the running program take it: new processes serve new
// connections, the old ones keep those that they have for as long as Grace. It returns when the new ones answer. The
// directory and the address stay the same.
func (i *Ingress) Reload(ctx context.Context, change func(*IngressConfig)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.proc == nil {
		return fmt.Errorf("%s: %w", i.dialect.name, errExited)
	}
	if change != nil {
		dir := i.cfg.Dir
		change(&i.cfg)
		i.cfg.Dir = dir
	}
	generation, err := i.configure()
	if err != nil {
		return err
	}
	if err := i.proc.signal(i.dialect.reload); err != nil {
		return err
	}
	return i.proc.waitUntil(ctx, i.runs(i.proc, generation))
}

// Workers counts the processes that serve connections; more than usual while those from before a reload still do.
func (i *Ingress) Workers() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.proc == nil || i.proc.exited() {
		return 0
	}
	return len(children(i.proc.pid()))
}

// Addr is "127.0.0.1:port".
func (i *Ingress) Addr() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.addr
}

// Log is what the program has written since its last start.
func (i *Ingress) Log() string {
	raw, err := os.ReadFile(i.logFile())
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func (i *Ingress) logFile() string { return filepath.Join(i.cfg.Dir, i.dialect.name+".log") }

// Kill ends all processes at once, as a crash of the machine does. It may be started again.
func (i *Ingress) Kill() { i.end((*process).kill) }

// Stop ends the ingress, and the connections through it, in its own order. It may be started again.
func (i *Ingress) Stop() {
	i.end(func(p *process) { p.endWith(i.dialect.stop, ingressGrace) })
}

func (i *Ingress) end(how func(*process)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.proc == nil {
		return
	}
	how(i.proc)
	i.proc = nil
}

// validate is called before a configuration is written: a program's own message about it is harder to read.
func (cfg IngressConfig) validate() error {
	if len(cfg.Upstreams) == 0 {
		return errors.New("an ingress leads somewhere: Upstreams is empty")
	}
	for _, upstream := range cfg.Upstreams {
		if _, _, err := net.SplitHostPort(upstream); err != nil {
			return fmt.Errorf("upstream: %w", err)
		}
	}
	return nil
}
