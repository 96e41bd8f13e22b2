package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
)

// flaky is a backend that fails as it is told, at an address that is its own all the time: its socket is bound from the
// beginning, refuses until listen is called, and swallows what comes from then until serve is.
type flaky struct {
	addr string
	fd   int
	seen atomic.Int32 // connections that were accepted, apart from fillers
	now  atomic.Pointer[func(net.Conn)]

	mu      sync.Mutex
	fillers map[string]net.Conn // by their own address
}

func newFlaky(t *testing.T) *flaky {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	return &flaky{addr: fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port), fd: fd, fillers: map[string]net.Conn{}}
}

// swallow makes it a black hole: the queue of those who want to be accepted is full, and the kernel drops who else comes.
func (f *flaky) swallow(t *testing.T) {
	t.Helper()
	require.NoError(t, syscall.Listen(f.fd, 0))
	for {
		c, err := net.DialTimeout("tcp", f.addr, time.Second)
		if err != nil {
			require.True(t, timedOut(err), err)
			return
		}
		f.fillers[c.LocalAddr().String()] = c
	}
}

// serve has it accept from now on.
func (f *flaky) serve(t *testing.T, how func(net.Conn)) {
	t.Helper()
	if f.now.Swap(&how) != nil {
		return // it does already
	}
	require.NoError(t, syscall.Listen(f.fd, 256))
	dup, err := syscall.Dup(f.fd)
	require.NoError(t, err)
	file := os.NewFile(uintptr(dup), "listener")
	l, err := net.FileListener(file)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	var wg sync.WaitGroup
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			conns = append(conns, c)
			filler := f.fillers[c.RemoteAddr().String()]
			f.mu.Unlock()
			if filler != nil {
				_, _ = c.Close(), filler.Close()
				continue
			}
			f.seen.Add(1)
			serve := *f.now.Load()
			wg.Go(func() { defer func() { _ = c.Close() }(); serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		wg.Wait()
	})
}

// through passes everything on to another server, but no more than some bytes of what it answers; then it does what end
// says. 0: all of it.
func through(server string, most int64, end func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		up, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer func() { _, _ = up.Close(), c.Close() }()
		wg.Go(func() { _, _ = io.Copy(up, c); _ = up.(*net.TCPConn).CloseWrite() })
		if most == 0 {
			_, _ = io.Copy(c, up)
			return
		}
		_, _ = io.CopyN(c, up, most)
		end(c)
	}
}

func silent(c net.Conn)  { _, _ = io.Copy(io.Discard, c) }
func closing(c net.Conn) {}
func resetting(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0) // Close sends a reset then
}
func saying(what string) func(net.Conn) {
	return func(c net.Conn) { _, _ = fmt.Fprint(c, what); silent(c) }
}

// Every way in which a backend can fail, each with real sockets: five failures open the circuit, then nothing reaches the
// backend, and once it is well again a single probe closes the circuit, whoever else calls meanwhile.
//
// Verifies: R5.7, R5.8
func TestABackendThatFailsInEachWay(t *testing.T) {
	host, other := signerOf(t, newKey(t)), signerOf(t, newKey(t))
	stuck := make(chan struct{})
	well := fakeServer(t, host, nil, nil)
	stranger := fakeServer(t, other, nil, nil)
	strict := fakeServer(t, host, func(c *ssh.ServerConfig) {
		c.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, errors.New("no") }
	}, nil)
	thinking := fakeServer(t, host, func(c *ssh.ServerConfig) {
		c.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
			<-stuck
			return nil, errors.New("no")
		}
	}, nil)

	t.Cleanup(func() { close(stuck) }) // before the clean-up of the servers, which waits for it

	swallow := func(t *testing.T, f *flaky) { f.swallow(t) }
	refuse := func(*testing.T, *flaky) {}
	serving := func(how func(net.Conn)) func(*testing.T, *flaky) {
		return func(t *testing.T, f *flaky) { f.serve(t, how) }
	}
	for name, way := range map[string]struct {
		route string
		fail  func(*testing.T, *flaky)
		want  errs.Code
	}{
		"passthrough refuses":         {"direct", refuse, errs.BackendUnreachable},
		"passthrough is a black hole": {"direct", swallow, errs.BackendTimeout},
		"refuses":                     {"db", refuse, errs.BackendUnreachable},
		"is a black hole":             {"db", swallow, errs.BackendTimeout},
		"accepts and says nothing":    {"db", serving(silent), errs.BackendTimeout},
		"accepts and closes":          {"db", serving(closing), errs.SSHHandshake},
		"accepts and resets":          {"db", serving(func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); resetting(c) }), errs.SSHHandshake},
		"speaks HTTP":                 {"db", serving(func(c net.Conn) { _, _ = fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }), errs.SSHHandshake},
		"greets and waits, as SMTP":   {"db", serving(saying("220 mail ESMTP\r\n")), errs.BackendTimeout},
		"speaks SSH 1":                {"db", serving(saying("SSH-1.5-old\r\n")), errs.SSHHandshake},
		"speaks without an end":       {"db", serving(func(c net.Conn) { _, _ = io.Copy(c, zeros{}) }), errs.SSHHandshake},
		"has another host key":        {"db", serving(through(stranger, 0, nil)), errs.HostKeyRefused},
		"refuses the login":           {"db", serving(through(strict, 0, nil)), errs.BackendAuth},
		"hangs after its version":     {"db", serving(through(well, 12, silent)), errs.BackendTimeout},
		"hangs in the key exchange":   {"db", serving(through(well, 900, silent)), errs.BackendTimeout},
		"hangs in the login":          {"db", serving(through(thinking, 0, nil)), errs.BackendTimeout},
		"dies in its version":         {"db", serving(through(well, 5, closing)), errs.SSHHandshake},
		"dies in its first packet":    {"db", serving(through(well, 300, closing)), errs.SSHHandshake},
		"dies in the key exchange":    {"db", serving(through(well, 1000, resetting)), errs.SSHHandshake},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFlaky(t)
			way.fail(t, f)
			b := fakeBackend(t, f.addr, host.PublicKey())
			b.DialTimeout = 30 * time.Second
			br, err := breaker.New(breaker.Config{RetryAfter: 4 * time.Second})
			require.NoError(t, err)
			patient, _ := newSet(t, b, "target:1", func(c *Config) { c.Breaker = br })
			s := patient
			if way.want == errs.BackendTimeout {
				b.DialTimeout = time.Second
				s, _ = newSet(t, b, "target:1", func(c *Config) { c.Breaker = br })
			}

			for i, err := range together(s, way.route, 5) {
				require.ErrorIs(t, err, way.want, "call %d", i)
			}
			info := br.Info("bastion")
			require.Equal(t, breaker.Open, info.State)
			require.Equal(t, 5, info.Consecutive)
			require.Equal(t, way.want, info.LastFailure.Code)
			require.NotEmpty(t, info.LastFailure.Text)
			before := f.seen.Load()
			_, err = s.Dial(t.Context(), Caller{Tenant: "late"}, way.route)
			require.ErrorIs(t, err, errs.CircuitOpen)
			require.Positive(t, errs.From(err).RetryAfter)
			require.Equal(t, before, f.seen.Load(), "nothing reaches the backend")

			mended(t, patient, br, f, way.route, well)
		})
	}
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// together has n tenants dial at once.
func together(s *Set, route string, n int) []error {
	results := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var c Conn
			if c, results[i] = s.Dial(context.Background(), Caller{Tenant: fmt.Sprint("tenant", i)}, route); results[i] == nil {
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	return results
}

// mended makes the backend well again, and has a hundred tenants call as soon as a probe is due. The backend holds its
// answer back until all but the probe have theirs.
func mended(t *testing.T, s *Set, br *breaker.Breaker, f *flaky, route, well string) {
	t.Helper()
	answered := make(chan struct{})
	var inside sync.Once
	f.serve(t, func(c net.Conn) { <-answered; through(well, 0, nil)(c) })
	defer inside.Do(func() { close(answered) })
	require.Eventually(t, func() bool { return br.State("bastion") == breaker.HalfOpen }, 30*time.Second, time.Millisecond)
	before := f.seen.Load()
	opened := br.Info("bastion").Counts.Opened
	var refused, probed atomic.Int32
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range 100 {
		wg.Go(func() {
			<-start
			c, err := s.Dial(context.Background(), Caller{Tenant: fmt.Sprint("caller", i)}, route)
			if err == nil {
				probed.Add(1)
				if route == "db" {
					pingPong(t, c)
				}
				assert.NoError(t, c.Close())
				return
			}
			assert.ErrorIs(t, err, errs.CircuitOpen)
			assert.Positive(t, errs.From(err).RetryAfter)
			refused.Add(1)
		})
	}
	if route == "direct" { // a TCP connection is up before anybody accepts it: there is no holding the probe
		close(start)
		wg.Wait()
		require.Positive(t, probed.Load())
		require.EqualValues(t, 100, probed.Load()+refused.Load())
	} else {
		close(start)
		require.Eventually(t, func() bool { return refused.Load() == 99 }, 25*time.Second, time.Millisecond)
		require.Equal(t, breaker.HalfOpen, br.State("bastion"))
		inside.Do(func() { close(answered) })
		wg.Wait()
		require.EqualValues(t, 1, probed.Load())
		require.Equal(t, before+1, f.seen.Load(), "exactly one connection reached the backend")
	}
	info := br.Info("bastion")
	require.Equal(t, breaker.Closed, info.State)
	require.Equal(t, breaker.ReasonProbeSucceeded, info.LastChange.Reason)
	require.Equal(t, opened, info.Counts.Opened)
	for _, err := range together(s, route, 5) {
		require.NoError(t, err)
	}
}

// held dials block until they are told how to end.
type held struct {
	begun   atomic.Int32
	outcome chan error
}

func (h *held) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	h.begun.Add(1)
	if err := <-h.outcome; err != nil {
		return nil, err
	}
	return nowhere{}, nil
}

// waitFor has n opens of each tenant wait in the queue, behind what fills it.
func waitFor(t *testing.T, s *Set, n int) (results chan error) {
	t.Helper()
	results = make(chan error, n)
	before := s.waitingFor("dial")
	for i := range n {
		go func() {
			_, err := s.Dial(context.Background(), Caller{Tenant: fmt.Sprint("tenant", i%3)}, "direct")
			results <- err
		}()
	}
	require.Eventually(t, func() bool { return s.waitingFor("dial") == before+n }, patience, time.Millisecond)
	return results
}

func fill(t *testing.T, s *Set, h *held, n int) (results chan error) {
	t.Helper()
	results = make(chan error, n)
	for range n {
		go func() {
			_, err := s.Dial(context.Background(), Caller{Tenant: "first"}, "direct")
			results <- err
		}()
	}
	require.Eventually(t, func() bool { return h.begun.Load() == int32(n) }, patience, time.Millisecond)
	return results
}

// Verifies: R5.7
func TestWhoWaitsWhenTheCircuitOpensIsRefusedAtOnce(t *testing.T) {
	for _, byHand := range []bool{false, true} {
		br, err := breaker.New(breaker.Config{})
		require.NoError(t, err)
		h := &held{outcome: make(chan error)}
		s := queueSet(t, Dialing{Concurrent: 6}, h.dial, func(c *Config) { c.Breaker = br })
		first := fill(t, s, h, 6)
		waiting := waitFor(t, s, 20)
		still := 20
		if byHand {
			require.NoError(t, br.SetMode("b", breaker.ForceOpen, "ann"))
		} else {
			for n := range int32(5) { // each makes room for one who waits
				h.outcome <- errors.New("connection refused")
				if n < 4 {
					require.Eventually(t, func() bool { return h.begun.Load() == 6+n+1 }, patience, time.Millisecond)
				}
			}
			still = 16
		}
		for range still {
			require.ErrorIs(t, <-waiting, errs.CircuitOpen)
		}
		require.Empty(t, waiting, "the others' dials are still under way")
		require.Zero(t, s.waitingFor("dial"))
		under := s.Queues()[0].Running
		require.GreaterOrEqual(t, under, 5)
		begun := h.begun.Load()
		for range under {
			h.outcome <- nil
		}
		for range 20 - still {
			<-waiting
		}
		for range 6 {
			<-first
		}
		require.Equal(t, begun, h.begun.Load(), "nobody dialed after the circuit had opened")
		require.NoError(t, s.Close(t.Context()))
	}
}

// Verifies: R5.8
func TestTheProbeDoesNotWait(t *testing.T) {
	br, err := breaker.New(breaker.Config{Failures: 1, RetryAfter: 50 * time.Millisecond})
	require.NoError(t, err)
	h := &held{outcome: make(chan error, 2)}
	host := signerOf(t, newKey(t)).PublicKey()
	b := fakeBackend(t, "192.0.2.1:22", host)
	b.Dialing = Dialing{Concurrent: 1}
	s, _ := newSet(t, b, "target:1", func(c *Config) {
		c.Breaker = br
		release := make(chan error)
		t.Cleanup(func() { close(release) })
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if h.begun.Add(1) == 1 {
				<-release // hangs, in the only place
				return nowhere{}, nil
			}
			return nowhere{}, <-h.outcome
		}
	})
	done := make(chan error, 1)
	go func() { _, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "direct"); done <- err }()
	require.Eventually(t, func() bool { return h.begun.Load() == 1 }, patience, time.Millisecond)
	h.outcome <- errors.New("connection refused")
	_, err = s.Dial(t.Context(), Caller{Tenant: "b"}, "db")
	require.ErrorIs(t, err, errs.BackendUnreachable)
	require.NotEqual(t, breaker.Closed, br.State("bastion"))
	require.Eventually(t, func() bool { return br.State("bastion") == breaker.HalfOpen }, patience, time.Millisecond)
	h.outcome <- nil
	c, err := s.Dial(t.Context(), Caller{Tenant: "c"}, "direct")
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.Equal(t, breaker.Closed, br.State("bastion"))
	require.Equal(t, 1, s.Queues()[0].Running, "the first still hangs")
}

// What our own side does says nothing about the backend.
//
// Verifies: R5.7
func TestOurOwnFailuresDoNotOpenTheCircuit(t *testing.T) {
	host := signerOf(t, newKey(t))
	refusing := fakeServer(t, host, nil, func(_ *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		go ssh.DiscardRequests(requests)
		for n := range channels {
			_ = n.Reject(ssh.ConnectionFailed, "nothing there")
		}
	})
	for name, try := range map[string]func(*testing.T, *Set, *Backend) error{
		"a target's refusal": func(t *testing.T, s *Set, _ *Backend) error { return dialError(t, s, "db") },
		"a key file that is gone": func(t *testing.T, s *Set, b *Backend) error {
			require.NoError(t, os.WriteFile(b.KeyFile, []byte("no key"), 0o600))
			return dialError(t, s, "db")
		},
		"a caller who leaves": func(t *testing.T, s *Set, _ *Backend) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct")
			return err
		},
		"a caller without time": func(t *testing.T, s *Set, _ *Backend) error {
			ctx, cancel := context.WithTimeout(t.Context(), 0)
			defer cancel()
			_, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			br, err := breaker.New(breaker.Config{Failures: 2})
			require.NoError(t, err)
			b := fakeBackend(t, refusing, host.PublicKey())
			s, _ := newSet(t, b, "target:1", func(c *Config) { c.Breaker = br })
			for range 4 {
				err := try(t, s, &b)
				require.NotErrorIs(t, err, errs.CircuitOpen)
				require.Error(t, err)
			}
			require.Equal(t, breaker.Closed, br.State("bastion"))
			require.Zero(t, br.Info("bastion").Counts.Failed)
		})
	}
}
