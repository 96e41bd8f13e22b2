package peers

import (
	"context"
	"net"
	"os/exec"
)

// WSTunnel is erebe/wstunnel: one WebSocket inside TLS for each connection.
type WSTunnel struct{}

// Name implements Peer.
func (WSTunnel) Name() string { return "wstunnel" }

// Available implements Peer.
func (w WSTunnel) Available() (bool, string) { return onPath(w.Name()) }

// Start implements Peer.
func (w WSTunnel) Start(ctx context.Context, env Env) (*Instance, error) {
	s := newStarter(ctx, env)
	return s.finish(w.start(s))
}

func (w WSTunnel) start(s *starter) error {
	p, err := newWSPair(s, w.Name())
	if err != nil {
		return err
	}
	err = p.serve(s, "server", "--tls-certificate", p.files.cert, "--tls-private-key", p.files.key, "wss://"+p.server)
	if err != nil {
		return err
	}
	via, err := s.env.Via(p.server)
	if err != nil {
		return err
	}
	return p.dial(s, "client", "-L", "tcp://"+p.local+":"+s.env.Target, "wss://"+via)
}

// wsPair is what chisel and wstunnel have in common: one program for both sides, a TLS server on a port that must be
// chosen for it, and a client that listens on another.
type wsPair struct {
	program       string
	server, local string // addresses
	host, port    string // of server
	files         certFiles
}

func newWSPair(s *starter, program string) (*wsPair, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	w := &wsPair{program: path}
	if err := pickPorts(&w.server, &w.local); err != nil {
		return nil, err
	}
	if w.host, w.port, err = net.SplitHostPort(w.server); err != nil {
		return nil, err
	}
	w.files, err = makeCert(s.env.Dir)
	return w, err
}

func (w *wsPair) serve(s *starter, args ...string) error {
	p, err := s.gateway("server", w.program, args...)
	if err != nil {
		return err
	}
	return awaitPort(s.ctx, p, w.server)
}

func (w *wsPair) dial(s *starter, args ...string) error {
	p, err := s.sidecar("client", w.program, args...)
	if err != nil {
		return err
	}
	s.in.Addrs = Same(w.local)
	return awaitPort(s.ctx, p, w.local)
}
