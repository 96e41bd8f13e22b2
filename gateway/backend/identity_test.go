package backend

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
)

// authority is a certificate authority that a daemon trusts, and the file of principals that it accepts.
type authority struct {
	*daemon
	caKey      string
	ca         ssh.PublicKey
	principals string
}

// startTrusting runs a sshd that takes certificates and no plain keys.
func startTrusting(t *testing.T, principals string, extra ...string) *authority {
	t.Helper()
	dir := t.TempDir()
	key := newKey(t)
	a := &authority{caKey: filepath.Join(dir, "ca"), ca: signerOf(t, key).PublicKey(), principals: filepath.Join(dir, "principals")}
	writeKey(t, a.caKey, key)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pub"), ssh.MarshalAuthorizedKey(a.ca), 0o600))
	require.NoError(t, os.WriteFile(a.principals, []byte(principals+"\n"), 0o600))
	lines := append(append([]string{}, extra...), "TrustedUserCAKeys "+dir+"/ca.pub", "AuthorizedKeysFile none")
	if principals != "" {
		lines = append(lines, "AuthorizedPrincipalsFile "+a.principals)
	}
	a.daemon = startSSHD(t, lines...)
	return a
}

func (a *authority) backend(t *testing.T, change ...func(*Identity)) Backend {
	b := a.daemon.backend(t)
	b.KeyFile, b.Identity = "", &Identity{CAKeyFile: a.caKey}
	for _, f := range change {
		f(b.Identity)
	}
	return b
}

// certificates collects events.
type certificates struct {
	mu   sync.Mutex
	all  []CertificateEvent
	fail error
}

func (c *certificates) record(e CertificateEvent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, e)
	return c.fail
}

func (c *certificates) list() []CertificateEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]CertificateEvent(nil), c.all...)
}

// as connects route "db" for a pod.
func as(t *testing.T, s *Set, who Caller) (Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return s.Dial(ctx, who, "db")
}

var orders = Caller{Tenant: "payments/orders", Subject: "system:serviceaccount:payments:orders", Issuer: "https://cluster", Pod: "orders-7d9f-x2"}

func TestBackendsLogSaysWhoCame(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	events := new(certificates)
	set := metrics.NewSet()
	s, log := newSet(t, a.backend(t), echo(t), func(c *Config) {
		c.Instance, c.OnCertificate, c.Metrics = "gw-0", events.record, set
	})
	c, err := as(t, s, orders)
	require.NoError(t, err)
	pingPong(t, c)

	require.Len(t, events.list(), 1)
	e := events.list()[0]
	assert.Equal(t, "fairlead/gw-0:tenant=payments/orders:pod=orders-7d9f-x2", e.KeyID)
	assert.Equal(t, []string{"payments/orders"}, e.Principals)
	assert.Equal(t, orders, e.Caller)
	assert.Equal(t, ssh.FingerprintSHA256(a.ca), e.Authority)
	assert.InDelta(t, 300+60, e.ValidBefore.Sub(e.ValidAfter).Seconds(), 1)

	text := a.log.String()
	line := regexp.MustCompile(`Accepted publickey for \S+ from 127\.0\.0\.1 port \d+ ssh2: ED25519-CERT (SHA256:\S+) ID (\S+) \(serial (\d+)\) CA ED25519 (SHA256:\S+)`).FindStringSubmatch(text)
	require.NotNil(t, line, text)
	t.Log(line[0])
	assert.Equal(t, e.Key, line[1])
	assert.Equal(t, e.KeyID, line[2])
	assert.Equal(t, e.Authority, line[4])
	assert.EqualValues(t, 1, set.GetOrCreateCounter(`fairlead_gateway_backend_certificates_total{backend="bastion"}`).Get())

	secret, err := os.ReadFile(a.caKey)
	require.NoError(t, err)
	for _, part := range strings.Split(strings.TrimSpace(string(secret)), "\n") {
		assert.NotContains(t, log.String(), part)
	}
}

func TestCertificatesByPrincipalsCommand(t *testing.T) {
	a := startTrusting(t, "", "AuthorizedPrincipalsCommand /bin/echo payments:orders-7d9f-x2", "AuthorizedPrincipalsCommandUser nobody")
	s, _ := newSet(t, a.backend(t, func(id *Identity) { id.Principals = []string{"{tenant.0}:{pod}"} }), echo(t))
	c, err := as(t, s, orders)
	require.NoError(t, err)
	pingPong(t, c)
}

func TestWrongPrincipalIsRefused(t *testing.T) {
	a := startTrusting(t, "payments/ledger")
	s, _ := newSet(t, a.backend(t), echo(t))
	_, err := as(t, s, orders)
	require.ErrorIs(t, err, errs.BackendAuth)
	require.ErrorContains(t, err, `for the principals ["payments/orders"]`)
	require.Contains(t, a.log.String(), "Certificate does not contain an authorized principal")

	require.NoError(t, os.WriteFile(a.principals, []byte("payments/orders\n"), 0o600))
	c, err := as(t, s, orders)
	require.NoError(t, err, "nothing of it is kept")
	pingPong(t, c)
}

func TestExpiredCertificateIsRefused(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	s, _ := newSet(t, a.backend(t), echo(t), func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-6 * time.Minute) } })
	_, err := as(t, s, orders)
	require.ErrorIs(t, err, errs.BackendAuth)
	require.Contains(t, a.log.String(), "Certificate invalid: expired")
}

func TestAnotherAuthorityIsRefused(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	b := a.backend(t)
	good, err := os.ReadFile(a.caKey)
	require.NoError(t, err)
	s, _ := newSet(t, b, echo(t))
	writeKey(t, a.caKey, newKey(t)) // replaced while the backend trusts the first
	_, err = as(t, s, orders)
	require.ErrorIs(t, err, errs.BackendAuth)
	require.Contains(t, a.log.String(), "Failed publickey for ")
	require.NotContains(t, a.log.String(), "Certificate")
	require.NoError(t, os.Remove(a.caKey))
	_, err = as(t, s, orders)
	require.ErrorIs(t, err, errs.KeyUnreadable)
	require.NoError(t, os.WriteFile(a.caKey, good, 0o600))
	c, err := as(t, s, orders)
	require.NoError(t, err, "it is read again for each login")
	pingPong(t, c)
}

func TestSourceAddressIsHeldByTheBackend(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	for address, works := range map[string]bool{"127.0.0.0/8": true, "192.0.2.7": false} {
		s, _ := newSet(t, a.backend(t, func(id *Identity) { id.SourceAddresses = []string{address} }), echo(t))
		_, err := as(t, s, orders)
		if works {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, errs.BackendAuth)
			require.Contains(t, a.log.String(), "with valid certificate but not from a permitted source address")
		}
	}
}

// What sshd says, and the gateway does not know, is in docs/keyless.md.
func TestWithoutPrincipalsFileTheUsersNameCounts(t *testing.T) {
	a := startTrusting(t, "")
	b := a.backend(t)
	s, _ := newSet(t, b, echo(t))
	_, err := as(t, s, orders)
	require.ErrorIs(t, err, errs.BackendAuth)
	require.Contains(t, a.log.String(), "Certificate invalid: name is not a listed principal")
	b.Identity.Principals = []string{b.User}
	s, _ = newSet(t, b, echo(t))
	c, err := as(t, s, orders)
	require.NoError(t, err)
	pingPong(t, c)
}

// TestCertificatePermitsForwardingOnly takes the certificate that a Set would use and asks sshd for everything else.
func TestCertificatePermitsForwardingOnly(t *testing.T) {
	a := startTrusting(t, "payments/orders", "X11Forwarding yes", "PermitUserRC yes", "PermitTTY yes")
	b := a.backend(t)
	ca, err := b.authority()
	require.NoError(t, err)
	signer, cert, err := b.Identity.issue(ca, names{"id", []string{"payments/orders"}}, time.Now())
	require.NoError(t, err)
	require.Equal(t, map[string]string{"permit-port-forwarding": ""}, cert.Extensions)
	client, err := ssh.Dial("tcp", a.addr, &ssh.ClientConfig{User: b.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(a.hostKey)})
	require.NoError(t, err)
	defer client.Close()

	forwarded, err := client.Dial("tcp", echo(t))
	require.NoError(t, err)
	require.NoError(t, forwarded.Close())

	session, err := client.NewSession()
	require.NoError(t, err)
	require.Error(t, session.RequestPty("xterm", 24, 80, nil), "no terminal")
	ok, err := session.SendRequest("auth-agent-req@openssh.com", true, nil)
	require.NoError(t, err)
	require.False(t, ok, "no agent")
	ok, err = session.SendRequest("x11-req", true, ssh.Marshal(struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}{false, "MIT-MAGIC-COOKIE-1", "00", 0}))
	require.NoError(t, err)
	require.False(t, ok, "no X11")

	for _, run := range []func(*ssh.Session) ([]byte, error){
		func(s *ssh.Session) ([]byte, error) { return s.CombinedOutput("echo a command ran") },
		func(s *ssh.Session) ([]byte, error) {
			s.Stdin = strings.NewReader("echo a shell ran\nexit 0\n")
			out, err := s.StdoutPipe()
			if err != nil {
				return nil, err
			}
			if err := s.Shell(); err != nil {
				return nil, err
			}
			text := make([]byte, 100)
			n, _ := out.Read(text)
			return text[:n], s.Wait()
		},
	} {
		s, err := client.NewSession()
		require.NoError(t, err)
		out, err := run(s)
		var exit *ssh.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 1, exit.ExitStatus(), "what /bin/false says")
		require.NotContains(t, string(out), "ran")
	}
}

func TestCertificateIsRecordedBeforeItIsUsed(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	br, err := breaker.New(breaker.Config{Failures: 1})
	require.NoError(t, err)
	full := errors.New("disk full")
	events := &certificates{fail: errs.Wrap(errs.AuditFailed, full, "cannot write")}
	s, _ := newSet(t, a.backend(t), echo(t), func(c *Config) { c.OnCertificate, c.Breaker = events.record, br })
	_, err = as(t, s, orders)
	require.ErrorIs(t, err, errs.AuditFailed)
	require.ErrorIs(t, err, full)
	require.Empty(t, a.logins())
	require.NotContains(t, a.log.String(), "serial", "the server has not seen the certificate")
	require.Equal(t, breaker.Closed, br.State("bastion"), "not the backend's fault")

	events.mu.Lock()
	events.fail = nil
	events.mu.Unlock()
	c, err := as(t, s, orders)
	require.NoError(t, err)
	pingPong(t, c)
	serials := map[uint64]bool{}
	keys := map[string]bool{}
	for _, e := range events.list() {
		serials[e.Serial], keys[e.Key] = true, true
	}
	require.Len(t, serials, 2, "each has a serial of its own")
	require.Len(t, keys, 2, "each has a key of its own")
}

func TestNoCertificateForAHostThatIsNotTrusted(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	events := new(certificates)
	b := a.backend(t)
	b.KnownHostsFile = filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(b.KnownHostsFile, nil, 0o600))
	s, _ := newSet(t, b, echo(t), func(c *Config) { c.OnCertificate = events.record })
	_, err := as(t, s, orders)
	require.ErrorIs(t, err, errs.HostKeyRefused)
	require.Empty(t, events.list())
}

// Verifies: R4.6
func TestPodsNeverShareAConnectionWhenCertificatesNameThem(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	s, _ := newSet(t, a.backend(t), echo(t))
	owner := map[string]string{}
	for range 3 {
		for _, pod := range []string{"a", "b", ""} {
			c, err := as(t, s, Caller{Tenant: "payments/orders", Pod: pod})
			require.NoError(t, err)
			pingPong(t, c)
			address := c.LocalAddr().String()
			require.Equal(t, pod, orElse(owner, address, pod))
			owner[address] = pod
			id := map[string]string{"a": ":pod=a ", "b": ":pod=b ", "": ":pod=- "}[pod]
			_, port, _ := net.SplitHostPort(address)
			require.Regexp(t, "port "+port+" .*"+id, a.log.String())
		}
	}
	require.Len(t, owner, 3)
	require.Len(t, s.Stats(), 3)

	shared, _ := newSet(t, a.backend(t, func(id *Identity) { id.KeyID = "{tenant}" }), echo(t))
	for _, pod := range []string{"a", "b"} {
		_, err := as(t, shared, Caller{Tenant: "payments/orders", Pod: pod})
		require.NoError(t, err)
	}
	require.Len(t, pool1(shared).Connections, 1, "certificates that say the same can be shared within the tenant")
}

func orElse(m map[string]string, key, otherwise string) string {
	if v, ok := m[key]; ok {
		return v
	}
	return otherwise
}

func TestConnectionsOfATenantAreBoundedAlthoughCertificatesDiffer(t *testing.T) {
	a := startTrusting(t, "payments/orders\nother/one")
	set := metrics.NewSet()
	s, log := newSet(t, a.backend(t), echo(t), func(c *Config) {
		c.Metrics, c.Pool = set, PoolConfig{TenantConnections: 2, ChannelsPerConnection: 2, Connections: 2}
	})
	pod := func(name string) Caller { return Caller{Tenant: "payments/orders", Pod: name} }
	first, err := as(t, s, pod("a"))
	require.NoError(t, err)
	second, err := as(t, s, pod("b"))
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = s.Dial(ctx, pod("c"), "db")
	require.ErrorIs(t, err, errs.PoolExhausted)
	require.ErrorContains(t, err, "ssh_pool.connections_per_tenant is 2")
	_, err = as(t, s, Caller{Tenant: "other/one", Pod: "c"})
	require.NoError(t, err, "another tenant has its own")
	more, err := as(t, s, pod("a"))
	require.NoError(t, err, "what is there can be used")
	require.NoError(t, more.Close())

	waiting := make(chan error, 1)
	go func() {
		c, err := s.Dial(context.Background(), pod("c"), "db")
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		waiting <- err
	}()
	require.Eventually(t, func() bool { return countWaiting(s) == 1 }, patience, time.Millisecond)
	require.NoError(t, second.Close()) // idle now: it makes room for who waits
	require.NoError(t, <-waiting)
	require.Contains(t, log.String(), "reason=evicted")
	pingPong(t, first)
	total := 0
	for _, p := range s.Stats() {
		if p.Tenant == "payments/orders" {
			total += len(p.Connections)
		}
	}
	require.Equal(t, 2, total)
	require.Eventually(t, func() bool {
		return set.GetOrCreateCounter(`fairlead_gateway_backend_ssh_connections_ended_total{backend="bastion",reason="evicted"}`).Get() == 1
	}, patience, time.Millisecond)
}

func countWaiting(s *Set) int {
	n := 0
	for _, p := range s.Stats() {
		n += p.Waiting
	}
	return n
}

func TestCallersThatCannotBeNamedAreRefused(t *testing.T) {
	a := startTrusting(t, "x")
	b := a.backend(t, func(id *Identity) { id.Principals = []string{"{tenant}:{pod}"} })
	dials := 0
	s, _ := newSet(t, b, echo(t), func(c *Config) {
		c.Dial = func(context.Context, string, string) (net.Conn, error) { dials++; return nil, errors.New("no") }
	})
	for _, who := range []Caller{
		{Tenant: "a"},                 // no pod
		{Tenant: "a,root", Pod: "p"},  // a second principal
		{Tenant: "a\nroot", Pod: "p"}, // a second line
		{Tenant: "a b", Pod: "p"}, {Tenant: `a"b`, Pod: "p"}, {Tenant: "ä", Pod: "p"}, {Tenant: "a", Pod: "p\x00"},
		{Tenant: "a:b", Pod: "p"}, // could be tenant a in pod b:p
		{Tenant: "-a", Pod: "p"},  // an option of a command
		{Tenant: "-", Pod: "p"},   // what stands for nothing
		{Tenant: strings.Repeat("a", 128), Pod: "p"},
	} {
		_, err := as(t, s, who)
		require.ErrorIs(t, err, errs.RouteForbidden, "%q", who)
	}
	require.Zero(t, dials)
	require.Empty(t, s.Stats())
}
