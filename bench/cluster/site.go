package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"fairlead/bench/peers"
	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/balancer"
	"fairlead/shared/testbed/fault"
	sidecarconfig "fairlead/sidecar/config"
)

const (
	// Tenant is whom the sidecars' token speaks for.
	Tenant = "dev"

	// Routes, which are also the names of the sidecars' listeners.
	RouteEcho    = "echo"    // passthrough to the target
	RouteForward = "forward" // through OpenSSH's server to the target; only with Config.SSH
	RouteSSH     = "ssh"     // passthrough to OpenSSH's server; only with Config.SSH
	RouteBroken  = "broken"  // passthrough to the target over Site.Backend, which can be made to refuse

	tokenLife    = 24 * time.Hour
	readyTimeout = time.Minute           // of a program, on a machine that is busy
	look         = 20 * time.Millisecond // between two looks at another process
	askTimeout   = 10 * time.Second
)

// Config says what a site consists of. The zero value of a field means the default given with it.
type Config struct {
	Dir      string // for keys, configurations and logs; must exist
	Bin      string // directory of both programs; empty: they are built into Dir
	Replicas int    // 3
	Sidecars int    // none
	Memory   bool   // the gateways share nothing, as without a Redis
	SSH      bool   // with OpenSSH's server
	Sentinel bool   // two Redis with a Sentinel before them
	Seed     uint64 // of the balancer
	Check    balancer.Check
	Patient  bool // the gateways give Redis a second to answer: on a machine that is busy it is not gone by that

	// Gateway and Sidecar change the configurations of each program before it starts; nil: not.
	Gateway func(replica int, c *gatewayconfig.Config)
	Sidecar func(sidecar int, c *sidecarconfig.Config)
}

// Site is several gateways that work as one, with all that is around them, each program a process:
//
//	application → sidecar → balancer → gateway → target
//	                         gateway → proxy → peer port of another gateway
//	                         gateway → proxy → Redis
type Site struct {
	Balancer *balancer.Balancer
	Replicas []*Replica
	Sidecars []*Sidecar
	Redis    *testbed.Redis // nil with Memory
	Spare    *testbed.Redis // follows Redis; nil without Sentinel
	Target   *Target
	SSH      *testbed.SSHD // nil without Config.SSH
	Backend  *fault.Proxy  // before RouteBroken's backend

	cfg      Config
	bin      string
	net      network
	ca       *testbed.CA
	cert     *testbed.Certificate
	issuer   *testbed.Issuer
	sentinel *sentinel
	stops    []func() error
}

// Start starts everything but what the caller starts by itself, and returns when the gateways are ready and, with them,
// the sidecars. ctx bounds the start only; Close must be called.
func Start(ctx context.Context, cfg Config) (_ *Site, err error) {
	s, err := Prepare(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.StartReplicas(ctx); err != nil {
		return nil, err
	}
	return s, s.StartSidecars(ctx)
}

// Prepare is Start without gateways and sidecars.
func Prepare(ctx context.Context, cfg Config) (_ *Site, err error) {
	if cfg.Replicas == 0 {
		cfg.Replicas = 3
	}
	s := &Site{cfg: cfg, bin: cfg.Bin}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.bin == "" {
		s.bin = filepath.Join(cfg.Dir, "bin")
		if err = os.MkdirAll(s.bin, 0o700); err == nil {
			err = peers.Build(ctx, s.bin)
		}
		if err != nil {
			return nil, err
		}
	}
	if s.net, err = newNetwork(); err != nil {
		return nil, err
	}
	if err = s.makeKeys(); err != nil {
		return nil, err
	}
	if err = s.startBackends(ctx); err != nil {
		return nil, err
	}
	if err = s.startStore(ctx); err != nil {
		return nil, err
	}
	for n := range cfg.Replicas {
		r, err := s.newReplica(n)
		if err != nil {
			return nil, err
		}
		s.Replicas = append(s.Replicas, r)
	}
	if err = s.startBalancer(); err != nil {
		return nil, err
	}
	for n := range cfg.Sidecars {
		one, err := s.newSidecar(n)
		if err != nil {
			return nil, err
		}
		s.Sidecars = append(s.Sidecars, one)
	}
	return s, nil
}

func (s *Site) defers(stop func() error) { s.stops = append(s.stops, stop) }

// Close ends everything, the sidecars first. It may be called once.
func (s *Site) Close() error {
	var all sync.WaitGroup
	for _, one := range s.Sidecars {
		all.Go(one.stop)
	}
	all.Wait()
	for _, one := range s.Replicas {
		all.Go(one.stop)
	}
	all.Wait()
	var failed []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		failed = append(failed, s.stops[i]())
	}
	return errors.Join(failed...)
}

// Err says which program has ended that was not asked to.
func (s *Site) Err() error {
	var failed []error
	for _, one := range s.Replicas {
		failed = append(failed, one.Err())
	}
	for _, one := range s.Sidecars {
		failed = append(failed, one.Err())
	}
	return errors.Join(failed...)
}

// Races returns what the race detector has said about the programs, if they are built with it.
func (s *Site) Races() (said []string) {
	logs, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*.log")) // the pattern is right
	for _, file := range logs {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "DATA RACE") {
			said = append(said, file)
		}
	}
	return said
}

// StartReplicas starts all gateways that do not run, at once, and waits until they are ready.
func (s *Site) StartReplicas(ctx context.Context) error {
	for _, r := range s.Replicas {
		if r.running() {
			continue
		}
		if err := r.Launch(ctx); err != nil {
			return err
		}
	}
	for _, r := range s.Replicas {
		if err := r.Ready(ctx); err != nil {
			return err
		}
	}
	if s.cfg.Check == balancer.None {
		return nil
	}
	return Until(ctx, readyTimeout, "the balancer knows that all gateways are ready", func() bool {
		for _, st := range s.Balancer.Stats() {
			if !st.Ready {
				return false
			}
		}
		return true
	})
}

// StartSidecars starts all sidecars and waits until they are ready.
func (s *Site) StartSidecars(ctx context.Context) error {
	for _, one := range s.Sidecars {
		if err := one.Launch(ctx); err != nil {
			return err
		}
	}
	for _, one := range s.Sidecars {
		if err := one.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startBalancer starts what stands before the gateways.
func (s *Site) startBalancer() (err error) {
	cfg := balancer.Config{Seed: s.cfg.Seed, Check: s.cfg.Check}
	for _, r := range s.Replicas {
		cfg.Backends = append(cfg.Backends, balancer.Backend{Name: r.Name, Address: r.Address()})
	}
	if s.Balancer, err = balancer.New(cfg); err != nil {
		return err
	}
	s.defers(func() error { s.Balancer.Close(); return nil })
	return nil
}

// file names a file in the site's directory.
func (s *Site) file(name string) string { return filepath.Join(s.cfg.Dir, name) }

// CAFile is the authority of the gateways' certificate.
func (s *Site) CAFile() string { return s.ca.CertFile() }

// TokenFile is the sidecars' token.
func (s *Site) TokenFile() string { return s.file("token") }
