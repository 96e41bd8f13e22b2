package backend

import (
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// halfClose sends size random bytes, ends its stream, and only then is answered: with the hash of all that came, and as
// many bytes of the answerer's own.
func halfClose(t *testing.T, c Conn, sums <-chan [32]byte, size int64) {
	t.Helper()
	sent, got := sha256.New(), sha256.New()
	_, err := io.Copy(io.MultiWriter(c, sent), io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	n, err := io.Copy(got, c)
	require.NoError(t, err)
	require.Equal(t, size, n)
	require.Equal(t, [32]byte(sent.Sum(nil)), <-sums, "what the target received")
	require.Equal(t, <-sums, [32]byte(got.Sum(nil)), "what the target sent")
	n2, err := c.Read(make([]byte, 1))
	require.Zero(t, n2)
	require.Equal(t, io.EOF, err)
}

func hashingTarget(t *testing.T, size int64) (string, <-chan [32]byte) {
	sums := make(chan [32]byte, 2)
	return listen(t, func(c net.Conn) {
		in, out := sha256.New(), sha256.New()
		_, err := io.Copy(in, c)
		assert.NoError(t, err)
		_, err = io.Copy(io.MultiWriter(c, out), io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		assert.NoError(t, err)
		assert.NoError(t, c.(*net.TCPConn).CloseWrite())
		sums <- [32]byte(in.Sum(nil))
		sums <- [32]byte(out.Sum(nil))
	}), sums
}

func TestHalfCloseAndEveryByteThroughAChannel(t *testing.T) {
	const size = 8<<20 + 12345 // several windows
	d := startSSHD(t)
	target, sums := hashingTarget(t, size)
	s, _ := newSet(t, d.backend(t), target)
	c := dial(t, s, "a")
	halfClose(t, c, sums, size)
	_, err := c.Write([]byte("x"))
	require.ErrorIs(t, err, syscall.EPIPE)
	require.NoError(t, c.CloseWrite(), "twice is fine")
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	for _, err := range []error{c.CloseWrite(), second(c.Read(make([]byte, 1))), second(c.Write([]byte("x")))} {
		require.ErrorIs(t, err, net.ErrClosed)
	}
	for _, err := range []error{c.SetDeadline(time.Now()), c.SetReadDeadline(time.Now()), c.SetWriteDeadline(time.Now())} {
		require.ErrorIs(t, err, os.ErrNoDeadline)
	}
}

func second(_ int, err error) error { return err }

func TestPassthroughIsTheTCPConnectionItself(t *testing.T) {
	const size = 1 << 20
	target, sums := hashingTarget(t, size)
	s, _ := newSet(t, fakeBackend(t, target, signerOf(t, newKey(t)).PublicKey()), "target:1")
	c, err := s.Dial(t.Context(), Caller{Tenant: "a"}, "direct")
	require.NoError(t, err)
	require.IsType(t, (*net.TCPConn)(nil), c)
	halfClose(t, c, sums, size)
	require.NoError(t, c.Close())
	require.Empty(t, s.Stats())
}

func TestEndOfTheTarget(t *testing.T) {
	d := startSSHD(t)
	target := listen(t, func(c net.Conn) { _, _ = io.WriteString(c, "bye") })
	s, _ := newSet(t, d.backend(t), target)
	c := dial(t, s, "a")
	all, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "bye", string(all))
	require.NoError(t, c.Close())
}

// Verifies: R7.10
func TestTargetRefusedSaysWhy(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), "127.0.0.1:"+freePort(t))
	err := dialError(t, s, "db")
	require.ErrorIs(t, err, errs.TargetRefused)
	require.ErrorContains(t, err, "Connection refused")
	require.ErrorContains(t, err, "phase: channel, server: SSH-2.0-OpenSSH_")
	require.Eventually(t, func() bool { return pool1(s).Channels == 0 }, patience, time.Millisecond, "the slot is free again")
	require.Len(t, pool1(s).Connections, 1, "the connection is kept")

	d = startSSHD(t, "PermitOpen none")
	s, _ = newSet(t, d.backend(t), echo(t))
	err = dialError(t, s, "db")
	require.ErrorIs(t, err, errs.TargetRefused)
	require.ErrorContains(t, err, "prohibited")
}

func TestLateChannelIsClosedAndItsSlotGivenBack(t *testing.T) {
	host := signerOf(t, newKey(t))
	release, closed := make(chan struct{}), make(chan struct{})
	addr := fakeServer(t, host, nil, func(_ *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		var wg sync.WaitGroup
		wg.Go(func() { ssh.DiscardRequests(requests) })
		n := <-channels
		<-release
		if c, reqs, err := n.Accept(); err == nil {
			ssh.DiscardRequests(reqs) // ends when the gateway closes it
			_ = c.Close()
			close(closed)
		}
		wg.Wait()
	})
	s, _ := newSet(t, fakeBackend(t, addr, host.PublicKey()), "target:1")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := s.Dial(ctx, Caller{Tenant: "a"}, "db")
	require.ErrorIs(t, err, errs.BackendTimeout)
	require.ErrorContains(t, err, "target:1")
	require.Equal(t, 1, pool1(s).Channels, "the backend may still open it")
	close(release)
	<-closed
	require.Eventually(t, func() bool { return pool1(s).Channels == 0 }, patience, time.Millisecond)
}

// The end of the connection ends all channels, which must not look like the end of their streams.
func TestServerThatEndsTheConnectionIsNoEndOfStream(t *testing.T) {
	host := signerOf(t, newKey(t))
	addr := fakeServer(t, host, nil, func(conn *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		var wg sync.WaitGroup
		wg.Go(func() { ssh.DiscardRequests(requests) })
		c, reqs, err := (<-channels).Accept()
		if assert.NoError(t, err) {
			wg.Go(func() { ssh.DiscardRequests(reqs) })
			_, _ = io.WriteString(c, "half of the data")
		}
		_ = conn.Close()
		wg.Wait()
	})
	s, _ := newSet(t, fakeBackend(t, addr, host.PublicKey()), "target:1")
	got, err := io.ReadAll(dial(t, s, "a"))
	require.ErrorIs(t, err, errs.BackendBroken)
	require.Equal(t, "half of the data", string(got))
}

func TestServersRequestsAndChannelsAreAnswered(t *testing.T) {
	host := signerOf(t, newKey(t))
	result := make(chan error, 2)
	addr := fakeServer(t, host, nil, func(conn *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		var wg sync.WaitGroup
		wg.Go(func() { ssh.DiscardRequests(requests) })
		var err error
		for range 100 { // more than the library queues
			if _, _, err = conn.SendRequest("hostkeys-00@openssh.com", true, nil); err != nil {
				break
			}
		}
		result <- err
		for range 100 {
			_, _, err = conn.OpenChannel("forwarded-tcpip", nil)
		}
		result <- err
		for n := range channels {
			_ = n.Reject(ssh.ConnectionFailed, "no")
		}
		wg.Wait()
	})
	s, _ := newSet(t, fakeBackend(t, addr, host.PublicKey()), "target:1")
	require.ErrorIs(t, dialError(t, s, "db"), errs.TargetRefused)
	require.NoError(t, <-result)
	var refused *ssh.OpenChannelError
	require.ErrorAs(t, <-result, &refused)
	require.Equal(t, ssh.Prohibited, refused.Reason)
}

func TestDialErrors(t *testing.T) {
	b := fakeBackend(t, "127.0.0.1:"+freePort(t), signerOf(t, newKey(t)).PublicKey())
	s, _ := newSet(t, b, "target:1")
	for _, route := range []string{"db", "direct"} {
		err := dialError(t, s, route)
		require.ErrorIs(t, err, errs.BackendUnreachable)
		require.ErrorContains(t, err, `backend "bastion" (`+b.Address+`) cannot be reached (phase: TCP dial)`)
	}
	require.ErrorIs(t, dialError(t, s, "nowhere"), errs.RouteUnknown)

	b.DialTimeout = 50 * time.Millisecond
	var entered atomic.Int32
	s, log := newSet(t, b, "target:1", func(c *Config) {
		c.SlowDial = time.Millisecond
		c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			entered.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	for _, route := range []string{"db", "direct"} {
		require.ErrorIs(t, dialError(t, s, route), errs.BackendTimeout)
	}
	require.Equal(t, 2, strings.Count(log.String(), "a dial was slow"))

	b.DialTimeout = time.Minute
	entered.Store(0)
	s, _ = newSet(t, b, "target:1", func(c *Config) {
		c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			entered.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for _, route := range []string{"db", "direct"} {
		go func() { _, err := s.Dial(ctx, Caller{Tenant: "a"}, route); done <- err }()
	}
	require.Eventually(t, func() bool { return entered.Load() == 2 }, patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, errs.Canceled)
	require.ErrorIs(t, <-done, errs.Canceled)
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct")
	require.ErrorIs(t, err, errs.OpenTimeout, "the caller's own deadline is not the backend's fault")
	_, err = s.Dial(ctx, Caller{Tenant: "a"}, "db")
	require.ErrorIs(t, err, errs.BackendTimeout)
}

func TestConfigIsChecked(t *testing.T) {
	good := fakeBackend(t, "127.0.0.1:22", signerOf(t, newKey(t)).PublicKey())
	route := Route{Name: "db", Backend: "bastion", Mode: Forward, Target: "db:5432"}
	for name, adjust := range map[string]func(b *Backend, r *Route, p *PoolConfig){
		"address":       func(b *Backend, _ *Route, _ *PoolConfig) { b.Address = "nowhere" },
		"port":          func(b *Backend, _ *Route, _ *PoolConfig) { b.Address = "nowhere:ssh" },
		"backend name":  func(b *Backend, r *Route, _ *PoolConfig) { b.Name = "a\nb"; r.Backend = "a\nb" },
		"no name":       func(_ *Backend, r *Route, _ *PoolConfig) { r.Name = "" },
		"user":          func(b *Backend, _ *Route, _ *PoolConfig) { b.User = "" },
		"key":           func(b *Backend, _ *Route, _ *PoolConfig) { b.KeyFile = "" },
		"known hosts":   func(b *Backend, _ *Route, _ *PoolConfig) { b.KnownHostsFile = "" },
		"host key mode": func(b *Backend, _ *Route, _ *PoolConfig) { b.HostKeyMode = "ask" },
		"timeout":       func(b *Backend, _ *Route, _ *PoolConfig) { b.DialTimeout = -1 },
		"no backend":    func(_ *Backend, r *Route, _ *PoolConfig) { r.Backend = "other" },
		"mode":          func(_ *Backend, r *Route, _ *PoolConfig) { r.Mode = "" },
		"target":        func(_ *Backend, r *Route, _ *PoolConfig) { r.Target = ":22" },
		"no target for": func(_ *Backend, r *Route, _ *PoolConfig) { r.Mode = Passthrough },
		"pool":          func(_ *Backend, _ *Route, p *PoolConfig) { p.Idle = -1 },
	} {
		b, r, p := good, route, PoolConfig{}
		adjust(&b, &r, &p)
		_, err := New(Config{Backends: []Backend{b}, Routes: []Route{r}, Pool: p})
		assert.ErrorIs(t, err, errs.ConfigInvalid, name)
	}
	for name, adjust := range map[string]func(b *Backend){
		"missing key":         func(b *Backend) { b.KeyFile += "x" },
		"no key":              func(b *Backend) { b.KeyFile = b.KnownHostsFile },
		"missing certificate": func(b *Backend) { b.CertificateFile = b.KeyFile + "x" },
		"no certificate":      func(b *Backend) { b.CertificateFile = b.KeyFile },
		"missing known hosts": func(b *Backend) { b.KnownHostsFile += "x" },
		"no known hosts":      func(b *Backend) { b.KnownHostsFile = b.KeyFile },
	} {
		b := good
		adjust(&b)
		_, err := New(Config{Backends: []Backend{b}, Routes: []Route{route}})
		assert.ErrorIs(t, err, errs.KeyUnreadable, name)
	}
	_, err := New(Config{Backends: []Backend{good, good}, Routes: []Route{route, route}})
	assert.ErrorContains(t, err, "two backends")
	assert.ErrorContains(t, err, "two routes")
	s, err := New(Config{Backends: []Backend{{Name: "git", Address: "git:22"}}, Routes: []Route{{Name: "git", Backend: "git", Mode: Passthrough}}})
	require.NoError(t, err, "passthrough needs no login")
	r, ok := s.Route("git")
	assert.True(t, ok)
	assert.Equal(t, "git", r.Backend)
	_, ok = s.Route("db")
	assert.False(t, ok)
	require.NoError(t, s.Close(t.Context()))
}
