// Package peers knows how to start each program that the benchmarks compare: two processes, one near the client (the
// sidecar's place) and one near the target (the gateway's place), that carry TCP connections between them.
package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"fairlead/bench/proc"
)

// Peer is one program to compare.
type Peer interface {
	// Name is the peer's name in options and reports.
	Name() string
	// Available says whether the peer can run on this machine, and why not.
	Available() (bool, string)
	// Start starts both sides and waits until they take connections. The caller stops the instance.
	Start(ctx context.Context, env Env) (*Instance, error)
}

// Env is what a peer is started with.
type Env struct {
	Exe    string // the bench binary, which is also the bare relay
	Dir    string // an empty directory for keys, configurations and logs; the caller removes it
	Target string // host:port that connections shall reach
	// Via returns the address that the near side must dial to reach the far side at address: itself, or that of a
	// proxy which delays or limits the path between them.
	Via func(address string) (string, error)
}

// Instance is a running peer.
type Instance struct {
	Addrs   Addrs
	Sidecar []*proc.Process // near the client
	Gateway []*proc.Process // near the target
	// MaxStreams is how many connections the peer can carry at once; 0 when there is no known limit.
	MaxStreams int
	// Access is how further tunnels to the far side can be opened; nil for peers that have no tunnels to count.
	Access *Access
}

// Addrs are the local addresses (host:port) to connect to, all leading to the target. Peers without priorities have
// the same in each.
type Addrs struct{ High, Normal, Low string }

// Access is what a client of fairlead's tunnel protocol needs.
type Access struct {
	URL       string // wss:// address of the gateway
	CAFile    string
	TokenFile string
	Route     string
}

// Same returns Addrs of a peer that knows no priorities.
func Same(addr string) Addrs { return Addrs{High: addr, Normal: addr, Low: addr} }

// PIDs lists the roots of one side's process trees.
func PIDs(side []*proc.Process) []int {
	ids := make([]int, len(side))
	for i, p := range side {
		ids[i] = p.PID()
	}
	return ids
}

// Stop ends all processes, the near side first, and waits for them.
func (i *Instance) Stop() {
	for _, p := range slices.Concat(i.Sidecar, i.Gateway) {
		p.Stop()
	}
}

// Err says which process has ended though it should run; nil when all run.
func (i *Instance) Err() error {
	for _, p := range slices.Concat(i.Sidecar, i.Gateway) {
		select {
		case <-p.Done():
			return errors.Join(errors.New("a process of the peer has ended"), p.Err())
		default:
		}
	}
	return nil
}

// Options are the choices of All.
type Options struct {
	// FairleadBin is a directory with sidecar and gateway binaries; when empty they are built from this module.
	FairleadBin string
	// BuildDir takes the built binaries; the caller removes it.
	BuildDir string
}

// All lists every known peer, in the order of reports.
func All(opts Options) []Peer {
	return []Peer{
		NewFairlead(opts.FairleadBin, opts.BuildDir),
		NewWideFairlead(opts.FairleadBin, opts.BuildDir, "64MiB"),
		Relay{},
		Relay{TLS: true},
		OpenSSH{},
		Chisel{},
		WSTunnel{},
	}
}

// starter collects the processes of an instance while it is built.
type starter struct {
	ctx context.Context
	env Env
	in  Instance
}

// newStarter is the first step of each Start.
func newStarter(ctx context.Context, env Env) *starter { return &starter{ctx: ctx, env: env} }

func (s *starter) gateway(name, path string, args ...string) (*proc.Process, error) {
	return s.start(&s.in.Gateway, proc.Spec{Path: path, Args: args, LogFile: s.file(name + ".log")})
}

func (s *starter) sidecar(name, path string, args ...string) (*proc.Process, error) {
	return s.start(&s.in.Sidecar, proc.Spec{Path: path, Args: args, LogFile: s.file(name + ".log")})
}

func (s *starter) start(side *[]*proc.Process, spec proc.Spec) (*proc.Process, error) {
	p, err := proc.Start(s.ctx, spec)
	if err == nil {
		*side = append(*side, p)
	}
	return p, err
}

// file names a file in the instance's directory.
func (s *starter) file(name string) string { return filepath.Join(s.env.Dir, name) }

// finish returns the instance, or stops what was started when err is not nil.
func (s *starter) finish(err error) (*Instance, error) {
	if err != nil {
		s.in.Stop()
		return nil, err
	}
	return &s.in, nil
}

// startTimeout bounds how long a peer may take until it takes connections.
const startTimeout = 20 * time.Second

// poll is the pause between two looks at something that another process brings about.
const poll = 10 * time.Millisecond

// awaitPort waits until address takes connections, or p has ended.
func awaitPort(ctx context.Context, p *proc.Process, address string) error {
	return await(ctx, p, address+" takes no connections", func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// await polls until ready says yes; what says what is wrong while it does not.
func await(ctx context.Context, p *proc.Process, what string, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for !ready() {
		select {
		case <-p.Done():
			return errors.Join(errors.New(what), p.Err())
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// Picky is a Peer that only some scenarios are for.
type Picky interface {
	Scenarios() []string // nil: all
}
