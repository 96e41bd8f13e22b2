package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

const (
	loopback = "127.0.0.1"
	tenant   = "demo"
	lifetime = 24 * time.Hour // of the token, as long as the certificates'
	drain    = 2 * time.Second

	// Routes, which are also the names of the sidecar's listeners.
	routeSSH = "ssh"
	routeWeb = "web"

	logFile   = "demo.log"
	auditFile = "audit.jsonl"
)

// site is the directory of a demo and what is in it.
type site struct {
	dir               string
	caFile            string
	cert              *testbed.Certificate
	issuer            *testbed.Issuer
	tokenFile         string
	sshDir            string // the SSH server's
	gatewayConfigFile string
	sidecarConfigFile string
	sshConfigFile     string // for OpenSSH's clients
	repository        string // to clone; empty on a machine without git
}

// workDir makes the directory to work in and says how to remove it; a directory that was asked for stays.
func workDir(asked string) (dir string, remove func() error, err error) {
	remove = func() error { return nil }
	if asked == "" {
		if dir, err = os.MkdirTemp("", "fairlead-demo-"); err != nil {
			return "", nil, err
		}
		remove = func() error { return os.RemoveAll(dir) }
	} else {
		if dir, err = filepath.Abs(asked); err != nil {
			return "", nil, errs.Wrap(errs.ConfigInvalid, err, "--dir")
		}
		if err = os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, errs.Wrap(errs.ConfigInvalid, err, "--dir")
		}
	}
	if err := plain(dir); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return dir, remove, nil
}

// plain refuses paths with characters that mean something to a shell or to OpenSSH's configuration files, where no way
// of quoting suits all of them.
func plain(path string) error {
	for _, r := range path {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+@,", r) {
			return errs.New(errs.ConfigInvalid, "the directory %q has a %q in its path; allowed are letters, digits and / . _ - + @ ,", path, r)
		}
	}
	return nil
}

// newSite makes all that needs no address: certificates, secret, token, repository.
func newSite(ctx context.Context, dir string) (*site, error) {
	s := &site{dir: dir, tokenFile: filepath.Join(dir, "token"), sshDir: filepath.Join(dir, "sshd"), sshConfigFile: filepath.Join(dir, "ssh_config"),
		gatewayConfigFile: filepath.Join(dir, "gateway.yaml"), sidecarConfigFile: filepath.Join(dir, "sidecar.yaml")}
	if err := os.MkdirAll(s.sshDir, 0o700); err != nil {
		return nil, err
	}
	ca, err := testbed.NewCA(dir)
	if err != nil {
		return nil, err
	}
	s.caFile = ca.CertFile()
	if s.cert, err = ca.Issue(testbed.CertificateConfig{}); err != nil {
		return nil, err
	}
	if s.issuer, err = testbed.NewIssuer(testbed.IssuerConfig{Algorithm: "HS256", Dir: dir}); err != nil {
		return nil, err
	}
	token, err := s.issuer.Valid(tenant, lifetime)
	if err != nil {
		return nil, err
	}
	if err := testbed.WriteToken(s.tokenFile, token); err != nil {
		return nil, err
	}
	return s, s.newRepository(ctx)
}

// newRepository makes a small git repository, with nobody's configuration, if the machine has git.
func (s *site) newRepository(ctx context.Context) error {
	git, err := exec.LookPath("git")
	if err != nil {
		return nil // the demo then has no example with git
	}
	repository := filepath.Join(s.dir, "example")
	if err := os.MkdirAll(repository, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(repository, "README"), []byte("This came through fairlead.\n"), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "README"}, {"commit", "-q", "--allow-empty", "-m", "An example"}} {
		cmd := exec.CommandContext(ctx, git, append([]string{"-c", "user.name=fairlead", "-c", "user.email=demo@localhost"}, args...)...)
		cmd.Dir = repository
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_DIR="+filepath.Join(repository, ".git"), "GIT_WORK_TREE="+repository)
		if told, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, told)
		}
	}
	s.repository = repository
	return nil
}

// writeGatewayConfig writes the gateway's configuration: two routes over one SSH server.
func (s *site) writeGatewayConfig(c config, server testbed.SSHServer, target string) error {
	return os.WriteFile(s.gatewayConfigFile, fmt.Appendf(nil, `listen: %q
tls: {cert_file: %q, key_file: %q}
auth:
  issuers:
    - {issuer: %q, audience: %q, hmac_secret_file: %q, algorithms: [HS256]}
backends:
  sshd:
    address: %q
    user: %q
    key_file: %q
    host_keys: {known_hosts_file: %q}
routes:
  %s: {backend: sshd, mode: passthrough}
  %s: {backend: sshd, mode: forward, target: %q}
policy:
  - {tenants: [%s], routes: [%s, %s]}
tiers:
  default: {opens_per_minute: 0, burst: 0, tunnels: 0, streams: 0}
limits: {shedding: {enabled: false}}
admin: {listen: %q}
audit: {file: %q}
shutdown: {drain: %s}
log: {format: text}
`, at(c.gatewayPort), s.cert.CertFile, s.cert.KeyFile, s.issuer.Issuer(), s.issuer.Audience(), s.issuer.SecretFile(),
		server.Addr(), server.User(), server.KeyFile(), server.KnownHostsFile(), routeSSH, routeWeb, target, tenant, routeSSH, routeWeb,
		at(c.adminPort), s.auditFile(), drain), 0o600)
}

// auditFile is where the gateway records who did what.
func (s *site) auditFile() string { return filepath.Join(s.dir, auditFile) }

// writeSidecarConfig writes the sidecar's configuration, for the demo's own and for `sidecar connect`.
func (s *site) writeSidecarConfig(c config, gateway net.Addr, port int) error {
	return os.WriteFile(s.sidecarConfigFile, fmt.Appendf(nil, `gateway:
  endpoints: ["wss://%s/"]
  ca_file: %q
  token_file: %q
listeners:
  - {name: %[4]s, listen: %[5]q, route: %[4]s, priority: high}
  - {name: %[6]s, listen: %[7]q, route: %[6]s}
admin: {listen: %[8]q}
shutdown: {drain: %[9]s}
log: {format: text}
`, gateway, s.caFile, s.tokenFile, routeSSH, at(port), routeWeb, at(0), at(c.sidecarAdminPort), drain), 0o600)
}

// writeSSHConfig lets scp, git and ssh be told everything by one file and a host's name.
func (s *site) writeSSHConfig(server testbed.SSHServer, port int) error {
	return os.WriteFile(s.sshConfigFile, fmt.Appendf(nil, `Host demo
  HostName localhost
  Port %d
  User %s
  IdentityFile %s
  IdentitiesOnly yes
  UserKnownHostsFile %s
  HostKeyAlias %s
  StrictHostKeyChecking yes
`, port, server.User(), server.KeyFile(), server.KnownHostsFile(), testbed.HostAlias), 0o600)
}

// at is a loopback address; port 0 takes any.
func at(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }
