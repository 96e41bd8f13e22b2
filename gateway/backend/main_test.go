package backend

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fairlead/shared/testbed"

	"github.com/skeema/knownhosts"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "32"); err != nil { // parallel tests here wait for timeouts, not for a processor
		panic(err)
	}
	goleak.VerifyTestMain(m, // hystrix never ends the goroutines of a circuit
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"))
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return key
}

func signerOf(t *testing.T, key any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	return s
}

func writeKey(t *testing.T, file string, key any) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
}

// patience is for conditions that must come true: far longer than it takes, since machines that run tests are busy.
const patience = 30 * time.Second

// daemon is a real sshd.
type daemon struct {
	addr, dir string
	log       *testbed.LogBuffer
	hostKey   ssh.PublicKey
	clientKey string // file of the key that may log in
	known     string // known_hosts file
	cmd       *exec.Cmd
	done      chan error
}

// startSSHD runs /usr/sbin/sshd on a free port, trying another when someone else was faster. extra comes first in its
// configuration, where the first value of an option wins.
func startSSHD(t *testing.T, extra ...string) *daemon {
	t.Helper()
	require.NoError(t, os.MkdirAll("/run/sshd", 0o755))
	d := &daemon{dir: t.TempDir()}
	host, client := newKey(t), newKey(t)
	d.hostKey = signerOf(t, host).PublicKey()
	d.clientKey = filepath.Join(d.dir, "client")
	writeKey(t, filepath.Join(d.dir, "host"), host)
	writeKey(t, d.clientKey, client)
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "authorized"), ssh.MarshalAuthorizedKey(signerOf(t, client).PublicKey()), 0o600))
	for range 10 {
		if d.start(t, freePort(t), extra) {
			break
		}
	}
	require.NotEmpty(t, d.addr, "sshd did not start: %s", d.log)
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("log of sshd at %s:\n%s", d.addr, d.log)
		}
	})
	d.known = filepath.Join(d.dir, "known_hosts")
	require.NoError(t, os.WriteFile(d.known, []byte(knownhosts.Line([]string{d.addr}, d.hostKey)+"\n"), 0o600))
	return d
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

func (d *daemon) start(t *testing.T, port string, extra []string) bool {
	conf := filepath.Join(d.dir, "conf")
	lines := append(append([]string{}, extra...), "ListenAddress 127.0.0.1", "Port "+port, "HostKey "+d.dir+"/host",
		"AuthorizedKeysFile "+d.dir+"/authorized", "PidFile none", "PermitRootLogin yes", "AllowTcpForwarding yes",
		"StrictModes no", "UsePAM no", "PasswordAuthentication no", "LogLevel DEBUG", "MaxStartups 200", "")
	require.NoError(t, os.WriteFile(conf, []byte(strings.Join(lines, "\n")), 0o600))
	d.log = new(testbed.LogBuffer)
	d.cmd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", conf)
	d.cmd.Stderr = d.log
	d.cmd.WaitDelay = 5 * time.Second
	require.NoError(t, d.cmd.Start())
	d.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(d.cmd, d.done)
	for {
		select {
		case <-d.done:
			return false
		case <-time.After(5 * time.Millisecond):
			if strings.Contains(d.log.String(), "Server listening on") {
				d.addr = "127.0.0.1:" + port
				return true
			}
		}
	}
}

func (d *daemon) stop() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// logins are the client addresses of all logins so far.
func (d *daemon) logins() []string {
	var ports []string
	for _, m := range regexp.MustCompile(`Accepted publickey for \S+ from 127\.0\.0\.1 port (\d+)`).FindAllStringSubmatch(d.log.String(), -1) {
		ports = append(ports, "127.0.0.1:"+m[1])
	}
	return ports
}

// requireLogins compares the number of logins so far. sshd tells of one in its log some time after the client knows.
func (d *daemon) requireLogins(t *testing.T, n int, about ...any) {
	t.Helper()
	require.Eventually(t, func() bool { return len(d.logins()) >= n }, patience, time.Millisecond, about...)
	require.Len(t, d.logins(), n, about...)
}

// backend is the configuration that leads to the daemon.
func (d *daemon) backend(t *testing.T) Backend {
	t.Helper()
	me, err := user.Current()
	require.NoError(t, err)
	return Backend{Name: "bastion", Address: d.addr, User: me.Username, KeyFile: d.clientKey, KnownHostsFile: d.known, DialTimeout: 10 * time.Second}
}

// listen serves each connection on a goroutine of its own, and waits for them at the end of the test.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { defer func() { _ = c.Close() }(); serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// echo sends everything back, and ends its stream when the other side has.
func echo(t *testing.T) string {
	return listen(t, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

// newSet makes a Set with a route "db" to target through b; adjust may change all of it.
func newSet(t *testing.T, b Backend, target string, adjust ...func(*Config)) (*Set, *testbed.LogBuffer) {
	t.Helper()
	log := new(testbed.LogBuffer)
	cfg := Config{
		Backends: []Backend{b},
		Routes:   []Route{{Name: "db", Backend: b.Name, Mode: Forward, Target: target}, {Name: "direct", Backend: b.Name, Mode: Passthrough}},
		Logger:   slog.New(slog.NewTextHandler(log, nil)),
	}
	for _, f := range adjust {
		f(&cfg)
	}
	s, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, s.Close(ctx))
	})
	return s, log
}

func dial(t *testing.T, s *Set, tenant string) Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := s.Dial(ctx, Caller{Tenant: tenant}, "db")
	require.NoError(t, err)
	return c
}

// pingPong shows that a connection carries bytes both ways.
func pingPong(t *testing.T, c Conn) {
	t.Helper()
	msg := fmt.Appendf(nil, "hello %d", time.Now().UnixNano())
	_, err := c.Write(msg)
	require.NoError(t, err)
	got := make([]byte, len(msg))
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, msg, got)
}

// fakeServer is an SSH server in this process, for what sshd cannot be brought to do. It echoes on direct-tcpip channels.
func fakeServer(t *testing.T, host ssh.Signer, adjust func(*ssh.ServerConfig), serve func(*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request)) string {
	t.Helper()
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(host)
	if adjust != nil {
		adjust(cfg)
	}
	if serve == nil {
		serve = func(_ *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { ssh.DiscardRequests(requests) })
			for n := range channels {
				c, reqs, err := n.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { ssh.DiscardRequests(reqs) })
				wg.Go(func() { _, _ = io.Copy(c, c); _ = c.CloseWrite(); _ = c.Close() })
			}
		}
	}
	return listen(t, func(c net.Conn) {
		conn, channels, requests, err := ssh.NewServerConn(c, cfg)
		if err == nil {
			serve(conn, channels, requests)
			_ = conn.Close()
		}
	})
}

// fakeBackend is the configuration that leads to a fake server.
func fakeBackend(t *testing.T, addr string, host ssh.PublicKey) Backend {
	t.Helper()
	dir := t.TempDir()
	b := Backend{Name: "bastion", Address: addr, User: "u", KeyFile: dir + "/key", KnownHostsFile: dir + "/known", DialTimeout: 5 * time.Second}
	writeKey(t, b.KeyFile, newKey(t))
	require.NoError(t, os.WriteFile(b.KnownHostsFile, []byte(knownhosts.Line([]string{addr}, host)+"\n"), 0o600))
	return b
}
