package peers

import (
	"context"
	"os/exec"
)

// Chisel is jpillora/chisel: SSH inside a WebSocket inside TLS.
type Chisel struct{}

// Name implements Peer.
func (Chisel) Name() string { return "chisel" }

// Available implements Peer.
func (c Chisel) Available() (bool, string) { return onPath(c.Name()) }

// Start implements Peer.
func (c Chisel) Start(ctx context.Context, env Env) (*Instance, error) {
	s := newStarter(ctx, env)
	return s.finish(c.start(s))
}

func (c Chisel) start(s *starter) error {
	w, err := newWSPair(s, c.Name())
	if err != nil {
		return err
	}
	const login = "bench:bench" // guards a server on loopback that lives for seconds
	err = w.serve(s, "server", "--host", w.host, "--port", w.port, "--auth", login, "--tls-cert", w.files.cert, "--tls-key", w.files.key)
	if err != nil {
		return err
	}
	via, err := s.env.Via(w.server)
	if err != nil {
		return err
	}
	return w.dial(s, "client", "--auth", login, "--tls-ca", w.files.ca, "https://"+via, w.local+":"+s.env.Target)
}

// onPath is Available for peers that are one program.
func onPath(program string) (bool, string) {
	if _, err := exec.LookPath(program); err != nil {
		return false, program + " is not on the PATH"
	}
	return true, ""
}
