package balancer_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/testbed/balancer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// named answers each connection with its name, then echoes.
func named(t *testing.T, name string) balancer.Backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.WriteString(c, name); err != nil {
					return
				}
				if _, err := io.Copy(c, c); err == nil {
					_ = c.(*net.TCPConn).CloseWrite()
				}
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return balancer.Backend{Name: name, Address: l.Addr().String()}
}

func start(t *testing.T, cfg balancer.Config) *balancer.Balancer {
	t.Helper()
	b, err := balancer.New(cfg)
	require.NoError(t, err)
	t.Cleanup(b.Close)
	return b
}

// dial connects and returns which backend answers; "" when the connection ends instead.
func dial(t *testing.T, b *balancer.Balancer) (net.Conn, string) {
	t.Helper()
	c, err := net.Dial("tcp", b.Addr())
	if errors.Is(err, syscall.ECONNRESET) { // the end may be faster than the connect
		return nil, ""
	}
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	name := make([]byte, 1)
	n, _ := io.ReadFull(c, name)
	return c, string(name[:n])
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, time.Millisecond, what)
}

func TestConnectionsAreSpreadAndTheSameSeedRepeatsIt(t *testing.T) {
	backends := []balancer.Backend{named(t, "a"), named(t, "b"), named(t, "c")}
	choices := func(seed uint64) (all string) {
		b := start(t, balancer.Config{Backends: backends, Seed: seed})
		for range 60 {
			c, name := dial(t, b)
			all += name
			require.NoError(t, c.Close())
		}
		for _, name := range []string{"a", "b", "c"} {
			n := bytes.Count([]byte(all), []byte(name))
			assert.Equal(t, n, b.Stats()[name].Connections)
			assert.Greater(t, n, 5, all)
		}
		return all
	}
	first := choices(1)
	assert.Equal(t, first, choices(1))
	assert.NotEqual(t, first, choices(2))
}

func TestABackendThatRefusesIsPassedOver(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	b := start(t, balancer.Config{Backends: []balancer.Backend{{Name: "x", Address: gone.Addr().String()}, named(t, "a")}})
	for range 20 {
		_, name := dial(t, b)
		require.Equal(t, "a", name)
	}
	assert.Positive(t, b.Stats()["x"].Failed)
	assert.Zero(t, b.Stats()["x"].Connections)
}

func TestHalfClosesAreKept(t *testing.T) {
	b := start(t, balancer.Config{Backends: []balancer.Backend{named(t, "a")}})
	c, _ := dial(t, b)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		wrote <- err
	}()
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.NoError(t, <-wrote)
	assert.True(t, bytes.Equal(sent, got))
}

func TestCutsResetAllOrThoseOfOneBackend(t *testing.T) {
	b := start(t, balancer.Config{Backends: []balancer.Backend{named(t, "a"), named(t, "b")}})
	b.Only("a")
	first, name := dial(t, b)
	require.Equal(t, "a", name)
	b.Only("b")
	second, name := dial(t, b)
	require.Equal(t, "b", name)
	b.Only()
	require.Equal(t, 1, b.CutBackend("a"))
	_, err := first.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	_, err = second.Write([]byte("."))
	require.NoError(t, err)
	_, err = io.ReadFull(second, make([]byte, 1))
	require.NoError(t, err, "the other is untouched")
	await(t, "the first is over", func() bool { return b.Stats()["a"].Active == 0 }) // a moment after it was cut
	require.Equal(t, 1, b.Cut())
	_, err = second.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	await(t, "none is open", func() bool { return b.Stats()["a"].Active+b.Stats()["b"].Active == 0 })
}

func TestAPartitionHoldsBytesBackAndNewConnectionsGoElsewhere(t *testing.T) {
	b := start(t, balancer.Config{Backends: []balancer.Backend{named(t, "a"), named(t, "b")}, Dial: 500 * time.Millisecond})
	b.Only("a")
	c, name := dial(t, b)
	require.Equal(t, "a", name)
	b.Only()
	b.Partition("a")
	_, err := c.Write([]byte("."))
	require.NoError(t, err)
	for range 10 {
		_, name := dial(t, b)
		require.Equal(t, "b", name)
	}
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = c.Read(make([]byte, 1))
	require.ErrorContains(t, err, "timeout", "what was sent is held")
	b.Heal("a")
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err, "and arrives later")
}

func TestChecksKnowWhoIsReady(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusOK)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(int(status.Load()))
		fmt.Fprint(w, r.URL.Path)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	ready := balancer.Backend{Name: "r", Address: server.Listener.Addr().String()}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	b := start(t, balancer.Config{Backends: []balancer.Backend{ready, {Name: "x", Address: gone.Addr().String()}}, Check: balancer.TLS, Every: time.Millisecond})
	await(t, "it is ready", func() bool { return b.Stats()["r"].Ready })
	c, err := tls.Dial("tcp", b.Addr(), &tls.Config{InsecureSkipVerify: true})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	status.Store(http.StatusServiceUnavailable)
	await(t, "it is not ready", func() bool { return !b.Stats()["r"].Ready })
	_, name := dial(t, b)
	assert.Empty(t, name, "nobody is there")
	assert.False(t, b.Stats()["x"].Ready)
	status.Store(http.StatusOK)
	await(t, "it is ready again", func() bool { return b.Stats()["r"].Ready })
	b.Partition("r")
	require.False(t, b.Stats()["x"].Ready)

	plain := start(t, balancer.Config{Backends: []balancer.Backend{named(t, "a"), {Name: "x", Address: gone.Addr().String()}}, Check: balancer.TCP, Every: time.Millisecond})
	await(t, "who takes connections is ready", func() bool { return plain.Stats()["a"].Ready })
	assert.False(t, plain.Stats()["x"].Ready)
}

func TestWrongConfigurations(t *testing.T) {
	_, err := balancer.New(balancer.Config{})
	require.Error(t, err)
	_, err = balancer.New(balancer.Config{Backends: []balancer.Backend{{Name: "a"}, {Name: "a"}}})
	require.ErrorContains(t, err, `"a"`)
	_, err = balancer.New(balancer.Config{Listen: "nowhere", Backends: []balancer.Backend{{Name: "a"}}})
	require.Error(t, err)
}
