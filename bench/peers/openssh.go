package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
)

// OpenSSH is `ssh -N -L` to an sshd of its own, with keys made on the spot.
type OpenSSH struct{}

// Name implements Peer.
func (OpenSSH) Name() string { return "openssh" }

// sshdPath is where distributions put the server, which must be started by its absolute path.
const sshdPath = "/usr/sbin/sshd"

// Available implements Peer.
func (OpenSSH) Available() (bool, string) {
	for _, program := range []string{"ssh", "ssh-keygen", sshdPath} {
		if _, err := exec.LookPath(program); err != nil {
			return false, program + " is not installed"
		}
	}
	return true, ""
}

// Start implements Peer.
func (o OpenSSH) Start(ctx context.Context, env Env) (*Instance, error) {
	s := newStarter(ctx, env)
	s.in.MaxStreams = 9900 // OpenSSH ends a connection at 10,000 channels (CHANNELS_MAX_CHANNELS)
	return s.finish(o.start(s))
}

func (o OpenSSH) start(s *starter) error {
	var serverAddr, localAddr string
	if err := pickPorts(&serverAddr, &localAddr); err != nil {
		return err
	}
	if err := o.keys(s); err != nil {
		return err
	}
	if err := o.server(s, serverAddr); err != nil {
		return err
	}
	via, err := s.env.Via(serverAddr)
	if err != nil {
		return err
	}
	s.in.Addrs = Same(localAddr)
	return o.client(s, via, localAddr)
}

// keys makes a host key and a user key, and has each side trust exactly the other's.
func (OpenSSH) keys(s *starter) error {
	for _, name := range []string{"host", "user"} {
		out, err := exec.CommandContext(s.ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", s.file(name)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("make an SSH key: %w: %s", err, out)
		}
	}
	public, err := os.ReadFile(s.file("user.pub"))
	if err != nil {
		return err
	}
	host, err := os.ReadFile(s.file("host.pub"))
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.file("authorized_keys"), public, 0o600),
		os.WriteFile(s.file("known_hosts"), append([]byte("bench "), host...), 0o600),
	)
}

func (OpenSSH) server(s *starter, address string) error {
	if os.Geteuid() == 0 {
		// The directory that sshd locks its unprivileged part into; the service manager makes it where one runs.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return err
		}
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	err = writeLines(s.file("sshd_config"),
		"ListenAddress "+host, "Port "+port, "HostKey "+s.file("host"), "PidFile none",
		"AuthorizedKeysFile "+s.file("authorized_keys"), "StrictModes no", "PasswordAuthentication no",
		"KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "UsePAM no", "UseDNS no",
		"AllowTcpForwarding yes", "Ciphers aes256-gcm@openssh.com", "Compression no",
	)
	if err != nil {
		return err
	}
	p, err := s.gateway("sshd", sshdPath, "-D", "-e", "-f", s.file("sshd_config"))
	if err != nil {
		return err
	}
	return awaitPort(s.ctx, p, address)
}

func (OpenSSH) client(s *starter, via, localAddr string) error {
	host, port, err := net.SplitHostPort(via)
	if err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	err = writeLines(s.file("ssh_config"),
		"Host bench", "HostName "+host, "Port "+port, "HostKeyAlias bench", "User "+me.Username,
		"IdentityFile "+s.file("user"), "IdentitiesOnly yes", "IdentityAgent none", "BatchMode yes",
		"UserKnownHostsFile "+s.file("known_hosts"), "GlobalKnownHostsFile none", "StrictHostKeyChecking yes",
		"ExitOnForwardFailure yes", "LocalForward "+localAddr+" "+s.env.Target, "ControlPath none",
		"Ciphers aes256-gcm@openssh.com", "Compression no", "ConnectTimeout 15",
	)
	if err != nil {
		return err
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return err
	}
	p, err := s.sidecar("ssh", ssh, "-N", "-F", s.file("ssh_config"), "bench")
	if err != nil {
		return err
	}
	return awaitPort(s.ctx, p, localAddr)
}

// writeLines writes a configuration file of one setting a line.
func writeLines(path string, lines ...string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}
