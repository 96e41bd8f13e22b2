package backend

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/skeema/knownhosts"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
)

func dialError(t *testing.T, s *Set, route string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := s.Dial(ctx, Caller{Tenant: "a"}, route)
	require.Error(t, err)
	return err
}

// Verifies: R7.2, R7.3
func TestAlgorithmsAgreedWithSSHD(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t))
	pingPong(t, dial(t, s, "a"))
	peer := pool1(s).Connections[0].Peer
	assert.Equal(t, ssh.CipherAES256GCM, peer.Cipher)
	assert.Contains(t, []string{"mlkem768x25519-sha256", "curve25519-sha256"}, peer.KeyExchange, "which of them depends on the version of sshd")
	assert.Equal(t, "ssh-ed25519", peer.HostKey)
	assert.True(t, strings.HasPrefix(peer.Version, "SSH-2.0-OpenSSH_"), peer.Version)
	text := d.log.String()
	assert.Contains(t, text, "kex: algorithm: "+peer.KeyExchange)
	assert.Contains(t, text, "kex: client->server cipher: aes256-gcm@openssh.com")
	assert.Contains(t, text, "kex: server->client cipher: aes256-gcm@openssh.com")
}

// Verifies: R7.2
func TestPostQuantumKeyExchangeFirst(t *testing.T) {
	host := signerOf(t, newKey(t))
	s, _ := newSet(t, fakeBackend(t, fakeServer(t, host, nil, nil), host.PublicKey()), "target:1")
	pingPong(t, dial(t, s, "a"))
	assert.Equal(t, "mlkem768x25519-sha256", pool1(s).Connections[0].Peer.KeyExchange)
	assert.Equal(t, []string{"mlkem768x25519-sha256", "curve25519-sha256"}, keyExchanges()[:2])
	insecure := ssh.InsecureAlgorithms()
	for _, list := range [][]string{keyExchanges(), ciphers(), macs(), plainHostKeys(), certifiedHostKeys()} {
		for _, algo := range list {
			assert.NotContains(t, append(append(append(insecure.KeyExchanges, insecure.Ciphers...), insecure.MACs...), insecure.HostKeys...), algo)
			assert.NotContains(t, algo, "sha1")
		}
	}
}

// Verifies: R7.2, R7.10
func TestServersWithOldAlgorithmsAreRefused(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for name, option := range map[string]string{
		"SHA-1 key exchange": "KexAlgorithms diffie-hellman-group14-sha1",
		"ssh-rsa host key":   "HostKeyAlgorithms ssh-rsa",
		"SHA-1 MAC":          "Ciphers aes256-ctr\nMACs hmac-sha1",
		"CBC cipher":         "Ciphers aes256-cbc",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rsa")
			writeKey(t, file, rsaKey)
			d := startSSHD(t, option, "HostKey "+file)
			s, _ := newSet(t, d.backend(t), echo(t))
			err := dialError(t, s, "db")
			require.ErrorIs(t, err, errs.SSHHandshake)
			require.ErrorContains(t, err, `backend "bastion" (`+d.addr)
			require.ErrorContains(t, err, "phase: key exchange, server: SSH-2.0-OpenSSH_")
			words := strings.Fields(option)
			require.ErrorContains(t, err, words[len(words)-1], "it names what the server offers")
			require.Empty(t, d.logins())
		})
	}
}

// Verifies: R7.1
func TestSSH1IsRefused(t *testing.T) {
	for _, banner := range []string{"SSH-1.5-Cisco-1.25\n", "SSH-1.0-x\r\n", "SSH-3.0-future\r\n"} {
		addr := listen(t, func(c net.Conn) {
			_, _ = fmt.Fprint(c, banner)
			_, _ = c.Read(make([]byte, 1024))
		})
		s, _ := newSet(t, fakeBackend(t, addr, signerOf(t, newKey(t)).PublicKey()), "target:1")
		err := dialError(t, s, "db")
		require.ErrorIs(t, err, errs.SSHHandshake)
		require.ErrorContains(t, err, strings.TrimSpace(banner))
		require.ErrorContains(t, err, "SSH 2 is needed")
	}
}

func TestOtherServersAreNamed(t *testing.T) {
	addr := listen(t, func(c net.Conn) { _, _ = fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	s, _ := newSet(t, fakeBackend(t, addr, signerOf(t, newKey(t)).PublicKey()), "target:1")
	err := dialError(t, s, "db")
	require.ErrorIs(t, err, errs.SSHHandshake)
	require.ErrorContains(t, err, "HTTP/1.1 400 Bad Request")

	addr = listen(t, func(net.Conn) {})
	s, _ = newSet(t, fakeBackend(t, addr, signerOf(t, newKey(t)).PublicKey()), "target:1")
	err = dialError(t, s, "db")
	require.ErrorIs(t, err, errs.SSHHandshake)
	require.ErrorContains(t, err, "phase: version exchange")
}

// Verifies: R7.10
func TestHandshakeThatHangsTimesOut(t *testing.T) {
	wait := func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1<<16))
		_, _ = c.Read(make([]byte, 1<<16))
		_, _ = c.Read(make([]byte, 1<<16))
	}
	for phase, serve := range map[string]func(net.Conn){
		phaseVersion: wait,
		phaseKex:     func(c net.Conn) { _, _ = fmt.Fprint(c, "SSH-2.0-Slow\r\n"); wait(c) },
	} {
		b := fakeBackend(t, listen(t, serve), signerOf(t, newKey(t)).PublicKey())
		b.DialTimeout = 100 * time.Millisecond
		s, _ := newSet(t, b, "target:1")
		err := dialError(t, s, "db")
		require.ErrorIs(t, err, errs.BackendTimeout)
		require.ErrorContains(t, err, phase)
		require.ErrorContains(t, err, "bastion")
	}
	stuck := make(chan struct{})
	host := signerOf(t, newKey(t))
	b := fakeBackend(t, fakeServer(t, host, func(c *ssh.ServerConfig) {
		c.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { <-stuck; return nil, fmt.Errorf("no") }
	}, nil), host.PublicKey())
	b.DialTimeout = 500 * time.Millisecond
	s, _ := newSet(t, b, "target:1")
	err := dialError(t, s, "db")
	require.ErrorIs(t, err, errs.BackendTimeout)
	require.ErrorContains(t, err, "phase: login, server: SSH-2.0-Go, key exchange: mlkem768x25519-sha256, host key: ssh-ed25519, cipher: aes256-gcm@openssh.com")
	close(stuck)
}

// Verifies: R7.10
func TestWrongLogin(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	b.KeyFile = filepath.Join(t.TempDir(), "other")
	writeKey(t, b.KeyFile, newKey(t))
	s, _ := newSet(t, b, echo(t))
	err := dialError(t, s, "db")
	require.ErrorIs(t, err, errs.BackendAuth)
	for _, part := range []string{`backend "bastion"`, "phase: login", "server: SSH-2.0-OpenSSH_", "cipher: aes256-gcm@openssh.com", `user "` + b.User + `"`} {
		require.ErrorContains(t, err, part)
	}
	require.Empty(t, d.logins())
}

func TestRSAKeysAndCertificatesLogIn(t *testing.T) {
	ca := signerOf(t, newKey(t))
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/ca.pub", ssh.MarshalAuthorizedKey(ca.PublicKey()), 0o600))
	d := startSSHD(t, "TrustedUserCAKeys "+dir+"/ca.pub")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	b := d.backend(t)
	b.KeyFile, b.CertificateFile = dir+"/rsa", dir+"/rsa-cert.pub"
	writeKey(t, b.KeyFile, key)
	cert := &ssh.Certificate{Key: signerOf(t, key).PublicKey(), CertType: ssh.UserCert, KeyId: "gateway", ValidPrincipals: []string{b.User}, ValidBefore: ssh.CertTimeInfinity,
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-port-forwarding": ""}}}
	require.NoError(t, cert.SignCert(rand.Reader, ca))
	require.NoError(t, os.WriteFile(b.CertificateFile, ssh.MarshalAuthorizedKey(cert), 0o600))
	s, _ := newSet(t, b, echo(t))
	pingPong(t, dial(t, s, "a"))
	require.Contains(t, d.log.String(), "rsa-sha2-512")
}

// Verifies: R7.5
func TestStrictHostKeys(t *testing.T) {
	d := startSSHD(t)
	other := signerOf(t, newKey(t)).PublicKey()
	lines := map[string]struct {
		line string
		want error
	}{
		"known":     {knownhosts.Line([]string{d.addr}, d.hostKey), nil},
		"wildcard":  {"127.0.0.* " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(d.hostKey))), nil},
		"unknown":   {knownhosts.Line([]string{"elsewhere:22"}, other), errs.HostKeyRefused},
		"empty":     {"", errs.HostKeyRefused},
		"changed":   {knownhosts.Line([]string{d.addr}, other), errs.HostKeyRefused},
		"revoked":   {"@revoked * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(d.hostKey))), errs.HostKeyRefused},
		"authority": {"@cert-authority * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(d.hostKey))), errs.HostKeyRefused},
	}
	for name, c := range lines {
		t.Run(name, func(t *testing.T) {
			b := d.backend(t)
			b.KnownHostsFile = filepath.Join(t.TempDir(), "known")
			require.NoError(t, os.WriteFile(b.KnownHostsFile, []byte(c.line+"\n"), 0o600))
			before := len(d.logins())
			s, log := newSet(t, b, echo(t))
			if c.want == nil {
				pingPong(t, dial(t, s, "a"))
				return
			}
			err := dialError(t, s, "db")
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, ssh.FingerprintSHA256(d.hostKey))
			require.ErrorContains(t, err, "phase: host key")
			require.Equal(t, before, len(d.logins()), "nothing is sent to a server that is not trusted")
			require.Equal(t, name == "changed", strings.Contains(log.String(), "THE HOST KEY OF A BACKEND HAS CHANGED"))
			after, err := os.ReadFile(b.KnownHostsFile)
			require.NoError(t, err)
			require.Equal(t, c.line+"\n", string(after), "strict never writes")
		})
	}
}

// Verifies: R7.5
func TestHostCertificates(t *testing.T) {
	ca, imposter := signerOf(t, newKey(t)), signerOf(t, newKey(t))
	dir := t.TempDir()
	host := newKey(t)
	writeKey(t, dir+"/certified", host)
	cert := &ssh.Certificate{Key: signerOf(t, host).PublicKey(), CertType: ssh.HostCert, KeyId: "bastion", ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
	require.NoError(t, cert.SignCert(rand.Reader, ca))
	require.NoError(t, os.WriteFile(dir+"/certified-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600))
	d := startSSHD(t, "HostKey "+dir+"/certified", "HostCertificate "+dir+"/certified-cert.pub")
	b := d.backend(t)
	b.KnownHostsFile = dir + "/known"
	for signer, trusted := range map[ssh.Signer]bool{ca: true, imposter: false} {
		require.NoError(t, os.WriteFile(b.KnownHostsFile, []byte("@cert-authority 127.0.0.* "+string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), 0o600))
		s, _ := newSet(t, b, echo(t))
		if trusted {
			pingPong(t, dial(t, s, "a"))
			require.Equal(t, ssh.CertAlgoED25519v01, pool1(s).Connections[0].Peer.HostKey)
		} else {
			require.ErrorIs(t, dialError(t, s, "db"), errs.HostKeyRefused)
		}
	}
}

// Verifies: R7.5
func TestFirstUseIsRememberedAndAChangeRefused(t *testing.T) {
	keys := []ssh.Signer{signerOf(t, newKey(t)), signerOf(t, newKey(t))}
	var mu sync.Mutex
	now := keys[0]
	addr := listen(t, func(c net.Conn) {
		mu.Lock()
		cfg := &ssh.ServerConfig{NoClientAuth: true}
		cfg.AddHostKey(now)
		mu.Unlock()
		if conn, channels, requests, err := ssh.NewServerConn(c, cfg); err == nil {
			var wg sync.WaitGroup
			wg.Go(func() { ssh.DiscardRequests(requests) })
			for n := range channels {
				_ = n.Reject(ssh.ConnectionFailed, "nothing there")
			}
			_ = conn.Close()
			wg.Wait()
		}
	})
	b := fakeBackend(t, addr, keys[0].PublicKey())
	b.HostKeyMode = FirstUse
	b.KnownHostsFile = filepath.Join(t.TempDir(), "new")
	s, log := newSet(t, b, "target:1")
	var wg sync.WaitGroup
	for i := range 5 { // at once, each with a connection of its own
		wg.Go(func() {
			_, err := s.Dial(context.Background(), Caller{Tenant: fmt.Sprint(i)}, "db")
			assert.ErrorIs(t, err, errs.TargetRefused)
		})
	}
	wg.Wait()
	written, err := os.ReadFile(b.KnownHostsFile)
	require.NoError(t, err)
	require.Equal(t, knownhosts.Line([]string{addr}, keys[0].PublicKey())+"\n", string(written), "written once")
	info, err := os.Stat(b.KnownHostsFile)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NotContains(t, log.String(), "HAS CHANGED")

	mu.Lock()
	now = keys[1]
	mu.Unlock()
	restarted, restartedLog := newSet(t, b, "target:1") // knows the key from the file alone
	withoutFile := b
	withoutFile.KnownHostsFile = ""
	memory, memoryLog := newSet(t, withoutFile, "target:1")
	_, err = memory.Dial(t.Context(), Caller{Tenant: "first"}, "db")
	require.ErrorIs(t, err, errs.TargetRefused)
	mu.Lock()
	now = keys[0]
	mu.Unlock()
	_, err = memory.Dial(t.Context(), Caller{Tenant: "second"}, "db")
	require.ErrorIs(t, err, errs.HostKeyRefused)
	require.Contains(t, memoryLog.String(), "HAS CHANGED")
	mu.Lock()
	now = keys[1]
	mu.Unlock()
	require.ErrorIs(t, dialError(t, restarted, "db"), errs.HostKeyRefused)
	require.Contains(t, restartedLog.String(), "HAS CHANGED")
	require.Contains(t, restartedLog.String(), ssh.FingerprintSHA256(keys[1].PublicKey()))
}

// sharedKeys is a store as several replicas see it.
type sharedKeys struct {
	mu   sync.Mutex
	keys map[string]string
	err  error
}

func (k *sharedKeys) PinHostKey(_ context.Context, address, key string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return "", k.err
	}
	if k.keys[address] == "" {
		k.keys[address] = key
	}
	return k.keys[address], nil
}

// Verifies: R7.5
func TestFirstUseIsSharedByReplicas(t *testing.T) {
	host, other := signerOf(t, newKey(t)), signerOf(t, newKey(t))
	b := fakeBackend(t, fakeServer(t, host, nil, nil), host.PublicKey())
	b.HostKeyMode, b.KnownHostsFile = FirstUse, ""
	store := &sharedKeys{keys: map[string]string{}}
	with := func(c *Config) { c.HostKeys = store }
	first, _ := newSet(t, b, "target:1", with)
	pingPong(t, dial(t, first, "a"))
	second, _ := newSet(t, b, "target:1", with)
	pingPong(t, dial(t, second, "a"))

	store.keys[b.Address] = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(other.PublicKey()))) // what another replica saw
	third, log := newSet(t, b, "target:1", with)
	require.ErrorIs(t, dialError(t, third, "db"), errs.HostKeyRefused)
	require.Contains(t, log.String(), "HAS CHANGED")

	store.err = errs.New(errs.Internal, "store is down")
	fourth, log := newSet(t, b, "target:1", with)
	pingPong(t, dial(t, fourth, "a"))
	require.Contains(t, log.String(), "could not be compared with other replicas")
}

// Verifies: R5.7, R5.8
func TestBreakerGuardsDialsButNotOpenConnections(t *testing.T) {
	d := startSSHD(t)
	br, err := breaker.New(breaker.Config{RetryAfter: 200 * time.Millisecond})
	require.NoError(t, err)
	var mu sync.Mutex
	down, dials := false, 0
	set := metrics.NewSet()
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Breaker, c.Metrics = br, set
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dials++
			if down {
				return nil, fmt.Errorf("connection refused")
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	open := dial(t, s, "a")
	mu.Lock()
	down = true
	mu.Unlock()
	for i := range 5 {
		_, err := s.Dial(t.Context(), Caller{Tenant: fmt.Sprint(i)}, map[bool]string{true: "db", false: "direct"}[i%2 == 0])
		require.ErrorIs(t, err, errs.BackendUnreachable)
	}
	require.Equal(t, breaker.Open, br.State("bastion"))
	before := dials
	for _, route := range []string{"db", "direct"} {
		_, err := s.Dial(t.Context(), Caller{Tenant: "new"}, route)
		require.ErrorIs(t, err, errs.CircuitOpen)
		require.Positive(t, errs.From(err).RetryAfter)
	}
	require.Equal(t, before, dials, "an open circuit dials nothing")
	pingPong(t, open)
	pingPong(t, dial(t, s, "a"))
	mu.Lock()
	down = false
	mu.Unlock()
	require.Eventually(t, func() bool { return br.State("bastion") == breaker.HalfOpen }, patience, time.Millisecond)
	pingPong(t, dial(t, s, "new"))
	require.Equal(t, breaker.Closed, br.State("bastion"))
	require.EqualValues(t, 5, set.GetOrCreateCounter(`fairlead_gateway_backend_errors_total{backend="bastion",code="FL-S402"}`).Get())
	require.EqualValues(t, 2, set.GetOrCreateCounter(`fairlead_gateway_backend_errors_total{backend="bastion",code="FL-S418"}`).Get())
}
