// Package e2e tests sidecar and gateway together, with real clients and real servers. It has tests only.
package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
	sidecarconfig "fairlead/sidecar/config"
)

const (
	// patience is how long a test waits for a condition that must come true: far longer than it takes, since machines
	// that run tests are busy.
	patience = 60 * time.Second
	// glance is the time between two looks at a condition.
	glance = 5 * time.Millisecond

	loopback  = "127.0.0.1:0"
	ownTenant = "dev"
	sshRoute  = "ssh"
)

// world is a gateway, a sidecar and what is around them:
//
//	application → sidecar → proxy → gateway → backends
//	application → sidecar → proxy → ingress → inner → gateway → backends
//
// The configurations are the test's to change until the program starts; a program that is started again takes them as
// they are then.
type world struct {
	t         *testing.T
	dir       string
	ca        *testbed.CA
	cert      *testbed.Certificate // the gateway's
	issuer    *testbed.Issuer
	tenant    string           // whom the sidecar's token speaks for
	tokenFile string           // the sidecar's
	shows     *tls.Certificate // client certificate of clients other than the sidecar; nil: none
	proxy     *fault.Proxy
	ingress   *testbed.Ingress // between proxy and inner; nil without withIngress
	inner     *fault.Proxy     // between ingress and gateway; nil without withIngress
	ssh       *testbed.SSHD    // nil without an option that needs it
	gateway   *gatewayNode
	sidecar   *sidecarNode

	gatewayConfig gatewayconfig.Config
	sidecarConfig sidecarconfig.Config

	lifetime   time.Duration // of the token
	processes  bool
	plaintext  bool
	noSidecar  bool
	notReady   bool
	afterwards []func() // run once the configurations are made, before the programs start
}

// option changes a world before its programs start.
type option func(*world)

// newWorld starts a gateway and a sidecar, and returns when connections would work. Everything ends with the test: the
// sidecar first, then gateway, proxy and backends.
func newWorld(t *testing.T, opts ...option) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), tenant: ownTenant, lifetime: time.Hour}
	w.tokenFile = filepath.Join(w.dir, "token")
	w.ca, w.cert = testbed.NewTestCA(t)
	w.issuer = testbed.NewTestIssuer(t, "HS256")
	w.gatewayConfig = w.defaultGateway()
	w.sidecarConfig = w.defaultSidecar()
	for _, o := range opts {
		o(w)
	}
	w.proxy = testbed.NewProxy(t, "127.0.0.1:1") // the gateway's address is known once it listens
	w.sidecarConfig.Gateway.Endpoints = []string{w.endpoint(w.proxy.Addr())}
	w.writeToken(w.token(w.tenant, w.lifetime))
	for _, f := range w.afterwards {
		f()
	}
	w.startGateway()
	if w.noSidecar {
		return w
	}
	w.startSidecar()
	if !w.notReady {
		w.waitReady()
	}
	return w
}

// defaultGateway serves TLS with the test bed's certificate, without limits, and knows no route.
func (w *world) defaultGateway() gatewayconfig.Config {
	c := gatewayconfig.Default()
	c.Listen, c.Admin.Listen = loopback, loopback
	c.TLS.CertFile, c.TLS.KeyFile = w.cert.CertFile, w.cert.KeyFile
	c.Auth.Issuers = []gatewayconfig.Issuer{issuerOf(w.issuer)}
	c.Backends, c.Routes = map[string]gatewayconfig.Backend{}, map[string]gatewayconfig.Route{}
	c.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"*"}}}
	c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {}}
	c.Limits.HandshakesPerMinute, c.Limits.UnauthenticatedPerAddress = 0, 0
	c.Admin.RequestsPerMinute = 1 << 30 // tests wait by asking
	c.Limits.Shedding.Enabled = false   // machines that run tests are short of CPU
	c.Shutdown.Drain = 2 * time.Second
	c.Log.Level = "debug"
	return c
}

// issuerOf is the gateway's configuration for tokens of an issuer of the test bed, with keys from a file.
func issuerOf(i *testbed.Issuer) gatewayconfig.Issuer {
	var c gatewayconfig.Issuer
	c.SetDefaults()
	c.Issuer, c.Audience, c.Algorithms = i.Issuer(), i.Audience(), []string{i.Algorithm()}
	c.Leeway = 0
	if i.PublicKey() == nil {
		c.HMACSecretFile = i.SecretFile()
	} else {
		c.JWKSFile = i.JWKSFile()
	}
	return c
}

// defaultSidecar reconnects fast, never gives up, and has no listener.
func (w *world) defaultSidecar() sidecarconfig.Config {
	c := sidecarconfig.Default()
	c.Gateway.CAFile, c.Gateway.TokenFile = w.ca.CertFile(), w.tokenFile
	c.Tunnels = sidecarconfig.Tunnels{Min: 1, Max: 1}
	c.Reconnect.Base, c.Reconnect.Cap, c.Reconnect.MaxAttempts = 10*time.Millisecond, 200*time.Millisecond, 0
	c.Admin.Listen = loopback
	c.Shutdown.Drain = 2 * time.Second
	c.Log.Level = "debug"
	return c
}

// endpoint is the gateway's URL at an address.
func (w *world) endpoint(addr string) string {
	scheme := "wss"
	if w.plaintext {
		scheme = "ws"
	}
	return (&url.URL{Scheme: scheme, Host: addr, Path: "/"}).String()
}

// withGateway changes the gateway's configuration.
func withGateway(change func(*gatewayconfig.Config)) option {
	return func(w *world) { change(&w.gatewayConfig) }
}

// withSidecar changes the sidecar's configuration.
func withSidecar(change func(*sidecarconfig.Config)) option {
	return func(w *world) { change(&w.sidecarConfig) }
}

// withWatch has the gateway look at its files often.
func withWatch() option {
	return withGateway(func(c *gatewayconfig.Config) { c.Reload.Watch = 20 * time.Millisecond })
}

// withProcesses runs both programs as processes of their own, with configuration files, instead of inside this one.
func withProcesses() option { return func(w *world) { w.processes = true } }

// withoutSidecar starts a gateway only.
func withoutSidecar() option { return func(w *world) { w.noSidecar = true } }

// withoutWaiting returns from newWorld before the sidecar is ready; for tests in which it never is.
func withoutWaiting() option { return func(w *world) { w.notReady = true } }

// withLifetime sets for how long the sidecar's first token is valid.
func withLifetime(d time.Duration) option { return func(w *world) { w.lifetime = d } }

// withPlaintext does without TLS, as both configurations then ask for.
func withPlaintext() option {
	return func(w *world) {
		w.plaintext = true
		w.gatewayConfig.TLS = gatewayconfig.TLS{Disabled: true}
		w.sidecarConfig.Gateway.AllowPlaintext, w.sidecarConfig.Gateway.CAFile = true, ""
	}
}

// withSSHD adds OpenSSH's server as the backend "ssh", with a passthrough route and a listener of the same name.
func withSSHD() option {
	return func(w *world) {
		w.needSSHD()
		w.addRoute(sshRoute, gatewayconfig.Route{Backend: sshRoute, Mode: gatewayconfig.ModePassthrough}, "high")
	}
}

// withTarget adds a TCP server at addr as a backend, with a passthrough route and a listener of the same name.
func withTarget(name, addr string) option {
	return func(w *world) {
		w.addBackend(name, addr)
		w.addRoute(name, gatewayconfig.Route{Backend: name, Mode: gatewayconfig.ModePassthrough}, "normal")
	}
}

// withForward adds a route in mode forward to a target ("host:port") behind OpenSSH's server, and a listener.
func withForward(name, target string) option {
	return func(w *world) {
		w.needSSHD()
		w.addRoute(name, gatewayconfig.Route{Backend: sshRoute, Mode: gatewayconfig.ModeForward, Target: target}, "normal")
	}
}

// needSSHD starts OpenSSH's server and makes it a backend, unless that was done.
func (w *world) needSSHD() {
	if w.ssh != nil {
		return
	}
	w.ssh = testbed.NewSSHD(w.t, testbed.SSHDConfig{})
	b := w.addBackend(sshRoute, w.ssh.Addr())
	b.User, b.KeyFile, b.HostKeys.KnownHostsFile = w.ssh.User(), w.ssh.KeyFile(), w.ssh.KnownHostsFile()
	w.gatewayConfig.Backends[sshRoute] = b
}

func (w *world) addBackend(name, addr string) gatewayconfig.Backend {
	var b gatewayconfig.Backend
	b.SetDefaults()
	b.Address = addr
	w.gatewayConfig.Backends[name] = b
	return b
}

// addRoute adds a route and a listener of its name.
func (w *world) addRoute(name string, r gatewayconfig.Route, priority string) {
	if r.Compression == "" {
		r.Compression = "auto"
	}
	w.gatewayConfig.Routes[name] = r
	w.addListener(name, name, loopback, priority)
}

func (w *world) addListener(name, route, listen, priority string) {
	var l sidecarconfig.Listener
	l.SetDefaults()
	l.Name, l.Route, l.Listen, l.Priority = name, route, listen, priority
	w.sidecarConfig.Listeners = append(w.sidecarConfig.Listeners, l)
}

// clientTLS is how clients other than the sidecar connect.
func (w *world) clientTLS() *tls.Config {
	c := w.ca.ClientTLS()
	if w.shows != nil {
		c.Certificates = []tls.Certificate{*w.shows}
	}
	return c
}

// token makes a token.
func (w *world) token(tenant string, ttl time.Duration) string {
	w.t.Helper()
	token, err := w.issuer.Valid(tenant, ttl)
	require.NoError(w.t, err)
	return token
}

// writeToken replaces the sidecar's token file.
func (w *world) writeToken(token string) {
	w.t.Helper()
	require.NoError(w.t, testbed.WriteToken(w.tokenFile, token))
}

// dial connects to a listener of the sidecar, as an application does. The connection is closed at the end of the test.
func (w *world) dial(listener string) halfCloser {
	w.t.Helper()
	addr := w.sidecar.addr(w.t, listener)
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	c, err := net.DialTimeout(network, addr, patience)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() }) // most tests have closed it
	require.NoError(w.t, c.SetDeadline(time.Now().Add(2*patience)), "a test that hangs says where")
	return c.(halfCloser)
}

// halfCloser is a TCP or Unix connection.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// waitReady waits until the sidecar says that connections would work.
func (w *world) waitReady() {
	w.t.Helper()
	await(w.t, "the sidecar is ready", func() bool { return statusOf(w.sidecar.url("/readyz")) == 200 })
}

// await waits for a condition that must come true.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, glance, "%s", what)
}

// configFile writes a configuration as the file NAME.yaml in the world's directory.
func configFile[T sharedconfig.Validator](w *world, name string, cfg T) string {
	w.t.Helper()
	var text strings.Builder
	require.NoError(w.t, sharedconfig.WriteDefaults(&text, cfg))
	return w.writeFile(name+".yaml", text.String())
}

// writeFile writes a file into the world's directory and returns its path.
func (w *world) writeFile(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	require.NoError(w.t, writeAtomic(path, []byte(text)))
	return path
}

// sshConfig writes a configuration file for OpenSSH's clients (and git) in which each host is a way to reach w.ssh, given
// as a name and its options, and returns the file's path.
func (w *world) sshConfig(hosts map[string][]string) string {
	w.t.Helper()
	var text strings.Builder
	for name, options := range hosts {
		fmt.Fprintf(&text, "Host %s\n  %s\n", name, strings.Join(options, "\n  "))
	}
	fmt.Fprintf(&text, "Host *\n  %s\n", strings.Join(w.sshOptions(), "\n  "))
	return w.writeFile("ssh_config", text.String())
}

// sshThrough is the options that lead to a listener of the sidecar.
func (w *world) sshThrough(listener string) []string {
	w.t.Helper()
	host, port, err := net.SplitHostPort(w.sidecar.addr(w.t, listener))
	require.NoError(w.t, err)
	return []string{"HostName=" + host, "Port=" + port}
}

// sshOptions are the options that every client of w.ssh needs: who logs in, and which host keys are right.
func (w *world) sshOptions() []string {
	return []string{
		"User=" + w.ssh.User(), "IdentityFile=" + w.ssh.KeyFile(), "IdentitiesOnly=yes", "BatchMode=yes",
		"UserKnownHostsFile=" + w.ssh.KnownHostsFile(), "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes",
		"HostKeyAlias=" + testbed.HostAlias, fmt.Sprintf("ConnectTimeout=%d", int(patience/time.Second)), "LogLevel=ERROR",
	}
}
