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
	"time"
)

// SSHServer is what OpenSSH's server and the embedded one have in common.
type SSHServer interface {
	Addr() string           // "127.0.0.1:port"
	User() string           // the only user that may log in
	KeyFile() string        // that user's private key
	KnownHostsFile() string // the server's host keys under Addr and HostAlias
	SSHArgs() []string      // for OpenSSH's clients
	Connections() int       // open now, whether authenticated or not
	KillConnections() int   // ends them without a word; returns how many there were
	Stop()                  // ends the server and all its connections; may be called twice
}

// SSHDConfig says how sshd runs. The zero value of each field is the usual.
type SSHDConfig struct {
	Dir               string   // for keys, configuration and log; must exist
	Listen            string   // "127.0.0.1:port" to take over an earlier server's address; default: an unused port
	MaxStartups       string   // sshd_config's MaxStartups, such as "10:30:100"; default: 1000, which never drops
	NoTCPForwarding   bool     // refuses direct-tcpip and remote forwarding
	NoAgentForwarding bool     // refuses agent forwarding
	NoSFTP            bool     // offers no sftp subsystem
	Extra             []string // further lines of sshd_config, which come first and so win
}

// SSHD is a running OpenSSH server.
type SSHD struct {
	*sshFiles
	addr   string
	path   string
	config string // its sshd_config
	mu     sync.Mutex
	proc   *process
}

// SSHDPath returns where the machine has OpenSSH's server.
func SSHDPath() (string, bool) {
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"} {
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	path, err := exec.LookPath("sshd")
	return path, err == nil
}

// StartSSH starts OpenSSH's server, or the embedded one on a machine that has none.
func StartSSH(ctx context.Context, dir string) (SSHServer, error) {
	if _, ok := SSHDPath(); ok {
		return StartSSHD(ctx, SSHDConfig{Dir: dir})
	}
	return StartEmbedded(EmbeddedConfig{Dir: dir})
}

// StartSSHD starts OpenSSH's server with keys of its own and returns when it answers. ctx bounds the start only.
func StartSSHD(ctx context.Context, cfg SSHDConfig) (*SSHD, error) {
	path, ok := SSHDPath()
	if !ok {
		return nil, errors.New("this machine has no sshd: install openssh-server")
	}
	if err := privilegeSeparationDir(); err != nil {
		return nil, err
	}
	files, err := newSSHFiles(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("keys of sshd: %w", err)
	}
	s := &SSHD{sshFiles: files, path: path, config: filepath.Join(cfg.Dir, "sshd_config")}
	if cfg.Listen != "" {
		if err := s.startAt(ctx, cfg, cfg.Listen); err != nil {
			return nil, err
		}
		return s, nil
	}
	for attempt := 1; ; attempt++ {
		addr, err := unusedAddr()
		if err != nil {
			return nil, err
		}
		err = s.startAt(ctx, cfg, addr)
		if err == nil {
			return s, nil
		}
		if !taken(err) || attempt == portAttempts {
			return nil, err
		}
	}
}

// privilegeSeparationDir makes the directory that sshd, as root, insists on.
func privilegeSeparationDir() error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.MkdirAll("/run/sshd", 0o755)
}

func (s *SSHD) startAt(ctx context.Context, cfg SSHDConfig, addr string) error {
	s.addr = addr
	if err := os.WriteFile(s.config, []byte(s.configuration(cfg)), 0o600); err != nil {
		return err
	}
	if err := s.writeKnownHosts(addr); err != nil {
		return err
	}
	return s.Start(ctx)
}

func (s *SSHD) configuration(cfg SSHDConfig) string {
	host, port, _ := net.SplitHostPort(s.addr) // an address without a port makes sshd refuse the line, in its own words
	lines := append([]string{}, cfg.Extra...)
	lines = append(lines, "ListenAddress "+host, "Port "+port)
	for _, key := range s.hostPath {
		lines = append(lines, "HostKey "+key)
	}
	startups := cfg.MaxStartups
	if startups == "" {
		startups = "1000"
	}
	lines = append(lines,
		"AuthorizedKeysFile "+s.authorizedKeysFile(),
		"AllowUsers "+s.user,
		"PidFile none",
		"StrictModes no", // the keys are in a temporary directory, whose parents anybody may write
		"UsePAM no",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"PermitRootLogin prohibit-password",
		"AcceptEnv FAIRLEAD_*",
		"PrintMotd no",
		"UseDNS no",
		"LogLevel VERBOSE",
		"MaxStartups "+startups,
		"AllowTcpForwarding "+yes(!cfg.NoTCPForwarding),
		"AllowAgentForwarding "+yes(!cfg.NoAgentForwarding),
	)
	if !cfg.NoSFTP {
		lines = append(lines, "Subsystem sftp internal-sftp")
	}
	return strings.Join(lines, "\n") + "\n"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Start starts a stopped server again, at the same address and with the same keys.
func (s *SSHD) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		return fmt.Errorf("sshd at %s already runs", s.addr)
	}
	logPath := s.logFile()
	if err := os.WriteFile(logPath, nil, 0o600); err != nil {
		return err
	}
	proc, err := startProcess(logPath, s.path, "-D", "-e", "-f", s.config)
	if err != nil {
		return err
	}
	if err := proc.waitUntil(ctx, func() error { return banner(s.addr) }); err != nil {
		proc.kill()
		return err
	}
	s.proc = proc
	return nil
}

// banner returns nil when an SSH server greets at addr.
func banner(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, probeTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	greeting := make([]byte, len("SSH-2.0-"))
	n, err := conn.Read(greeting)
	if err != nil {
		return fmt.Errorf("no greeting from %s: %w", addr, err)
	}
	if !strings.HasPrefix(string(greeting[:n]), "SSH-") {
		return fmt.Errorf("%s greets with %q, which is not SSH", addr, greeting[:n])
	}
	return nil
}

// Addr is "127.0.0.1:port".
func (s *SSHD) Addr() string { return s.addr }

// Log is what sshd has written since its last start, at level VERBOSE.
func (s *SSHD) Log() string {
	raw, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func (s *SSHD) logFile() string { return filepath.Join(s.dir, "sshd.log") }

// Connections counts the processes that serve a connection each.
func (s *SSHD) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || s.proc.exited() {
		return 0
	}
	return len(children(s.proc.pid()))
}

// KillConnections kills each connection's process with all that it started; new connections are still served.
func (s *SSHD) KillConnections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || s.proc.exited() {
		return 0
	}
	serving := children(s.proc.pid())
	for _, pid := range serving {
		killTree(pid)
	}
	return len(serving)
}

// Stop kills the server and every process of its connections, and waits for it. It may be started again.
func (s *SSHD) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return
	}
	s.proc.kill()
	s.proc = nil
}
