package peers

import (
	"context"
	"encoding/json"
	"fmt"

	"fairlead/bench/proc"
)

// Relay is the bare limit: two processes of this binary that copy bytes, with one TCP connection per hop for each
// connection. With TLS between the two it is the reference that every CPU figure is compared with.
type Relay struct{ TLS bool }

// Name implements Peer.
func (r Relay) Name() string {
	if r.TLS {
		return "relay-tls"
	}
	return "relay-tcp"
}

// Available implements Peer: always.
func (Relay) Available() (bool, string) { return true, "" }

// Start implements Peer.
func (r Relay) Start(ctx context.Context, env Env) (*Instance, error) {
	s := newStarter(ctx, env)
	files, err := proc.Files()
	if err != nil {
		return nil, err
	}
	s.in.MaxStreams = max(1, int(files)/2-50) // two open files for each, and some for the process itself
	return s.finish(r.start(s))
}

func (r Relay) start(s *starter) error {
	var far, near []string
	if r.TLS {
		files, err := makeCert(s.env.Dir)
		if err != nil {
			return err
		}
		far, near = []string{"--cert", files.cert, "--key", files.key}, []string{"--ca", files.ca}
	}
	farAddr, err := r.side(s, &s.in.Gateway, "gateway", s.env.Target, far)
	if err != nil {
		return err
	}
	via, err := s.env.Via(farAddr)
	if err != nil {
		return err
	}
	nearAddr, err := r.side(s, &s.in.Sidecar, "sidecar", via, near)
	s.in.Addrs = Same(nearAddr)
	return err
}

// side starts one relay process and reads from its first line where it listens.
func (r Relay) side(s *starter, side *[]*proc.Process, name, target string, args []string) (string, error) {
	p, err := s.start(side, proc.Spec{
		Path: s.env.Exe, Args: append([]string{"relay", "--target", target}, args...),
		LogFile: s.file(name + ".log"), Piped: true,
	})
	if err != nil {
		return "", err
	}
	line, err := p.Line()
	if err != nil {
		return "", err
	}
	var said Listening
	if err := json.Unmarshal(line, &said); err != nil {
		return "", fmt.Errorf("relay said %.80q instead of its address: %w", line, err)
	}
	return said.Address, nil
}
