package status_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/sidecar/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers as h does, and gives a client that asks there.
func serve(t *testing.T, timeout time.Duration, h http.HandlerFunc) (*status.Client, *httptest.Server) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := status.NewClient(status.ClientConfig{Address: srv.Listener.Addr().String(), Timeout: timeout})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, srv
}

func answer(t *testing.T, w http.ResponseWriter, v any) {
	t.Helper()
	assert.NoError(t, json.NewEncoder(w).Encode(v))
}

func refuse(w http.ResponseWriter, err error) {
	code, body := errs.HTTP(err)
	w.WriteHeader(code)
	w.Write(body)
}

func TestWhatTheClientAsks(t *testing.T) {
	var asked []string
	c, _ := serve(t, 0, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		switch r.URL.Path {
		case "/api/status":
			answer(t, w, status.Status{State: "connected", Tunnels: []status.Tunnel{{ID: "t1"}}})
		case "/api/history":
			answer(t, w, []status.Sample{{Sent: 3}})
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	})
	ctx := t.Context()
	st, err := c.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, "t1", st.Tunnels[0].ID)
	samples, err := c.History(ctx)
	require.NoError(t, err)
	assert.Equal(t, 3.0, samples[0].Sent)
	for _, ask := range []func(context.Context) error{c.Ready, c.Drain, c.Quit, c.Reconnect} {
		require.NoError(t, ask(ctx))
	}
	assert.Equal(t, []string{"GET /api/status", "GET /api/history", "GET /readyz", "POST /api/drain", "POST /quitquitquit", "POST /api/reconnect"}, asked)
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1:9901": "127.0.0.1:9901", ":9901": "127.0.0.1:9901", "0.0.0.0:9901": "127.0.0.1:9901", "[::]:9901": "[::1]:9901",
		"localhost:1": "localhost:1", "[::1]:7": "[::1]:7", "[::ffff:0.0.0.0]:7": "127.0.0.1:7"} {
		c, err := status.NewClient(status.ClientConfig{Address: address})
		require.NoError(t, err, address)
		assert.Equal(t, want, c.Address(), address)
	}
	for _, address := range []string{"", "9901", "host", "127.0.0.1:0", "127.0.0.1:http", "127.0.0.1:70000", "a/b:80", "user@host:80", "a b:80", "127.0.0.1:-1"} {
		_, err := status.NewClient(status.ClientConfig{Address: address})
		assert.ErrorIs(t, err, errs.ConfigInvalid, address)
	}
}

func TestAWildcardAddressIsAskedOnLoopback(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		assert.True(t, net.ParseIP(host).IsLoopback(), r.Host)
	})}}
	srv.Start()
	defer srv.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{"", "0.0.0.0", "[::]"} {
		c, err := status.NewClient(status.ClientConfig{Address: host + ":" + port})
		require.NoError(t, err)
		assert.NoError(t, c.Ready(t.Context()), host)
		c.Close()
	}
}

// nobody is an address where nothing listens, of which nobody else takes a port.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.77.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestNoSidecar(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // is not used
	address := nobody(t)
	c, err := status.NewClient(status.ClientConfig{Address: address})
	require.NoError(t, err)
	_, err = c.Status(t.Context())
	assert.ErrorIs(t, err, errs.NoSidecar)
	assert.Equal(t, errs.ExitFailed, errs.ExitCode(err))
	assert.ErrorContains(t, err, "FL-N115: no sidecar answers at "+address+": dial tcp "+address+": connect: connection refused")
}

func TestAnswersThatAreNoneOfASidecar(t *testing.T) {
	endless := func(w http.ResponseWriter) {
		for chunk := []byte(strings.Repeat("[", 1<<16)); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	for name, h := range map[string]struct {
		handle http.HandlerFunc
		says   string
	}{
		"garbage":   {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("\x1b[2Jhello")) }, "is no sidecar"},
		"empty":     {func(http.ResponseWriter, *http.Request) {}, "is no sidecar"},
		"other":     {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"ok":true}`)) }, "its status has no state"},
		"null":      {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`null`)) }, "its status has no state"},
		"types":     {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"state":7,"queue":[]}`)) }, "another version"},
		"huge":      {func(w http.ResponseWriter, _ *http.Request) { endless(w) }, "more than 8 MiB"},
		"not found": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, "HTTP status 404"},
		"redirect":  {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "HTTP status 302"},
	} {
		c, _ := serve(t, time.Minute, h.handle)
		_, err := c.Status(t.Context())
		assert.ErrorIs(t, err, errs.NoSidecar, name)
		assert.ErrorContains(t, err, h.says, name)
		assert.NotContains(t, err.Error(), "\x1b", name)
	}
}

func TestRawBytesInsteadOfHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("HTTP/1.1 200 OK\r\n\x1b]0;owned\x07\r\n\r\n"))
			conn.Close()
		}
	}()
	c, err := status.NewClient(status.ClientConfig{Address: l.Addr().String()})
	require.NoError(t, err)
	_, err = c.Raw(t.Context())
	assert.ErrorIs(t, err, errs.NoSidecar)
	assert.NotContains(t, err.Error(), "\x1b")
	l.Close()
	<-done
}

func TestAHangingAnswer(t *testing.T) {
	release := make(chan struct{})
	c, _ := serve(t, 50*time.Millisecond, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	_, err := c.Status(t.Context())
	assert.ErrorIs(t, err, errs.NoSidecar)
	assert.ErrorContains(t, err, "within 50ms")
	assert.ErrorIs(t, c.Drain(t.Context()), errs.NoSidecar)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Status(ctx)
	assert.ErrorIs(t, err, errs.Canceled)
}

func TestTheSidecarsOwnError(t *testing.T) {
	c, _ := serve(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, errs.New(errs.AdminDenied, "not \x1b[31mfrom %s", strings.Repeat("x", 5000)).After(time.Second))
	})
	err := c.Quit(t.Context())
	assert.ErrorIs(t, err, errs.AdminDenied)
	assert.ErrorContains(t, err, "FL-A208: not ·[31mfrom xx")
	assert.Less(t, len(err.Error()), 600)
	assert.Equal(t, time.Second, errs.From(err).RetryAfter)
}

func TestCleanJSONSaysTheSame(t *testing.T) {
	in := []byte("{\"a\": \"x\u009b31m\u007fy é\"}")
	out := status.CleanJSON(in)
	assert.Equal(t, `{"a": "x\u009b31m\u007fy é"}`, string(out))
	var a, b map[string]string
	require.NoError(t, json.Unmarshal(in, &a))
	require.NoError(t, json.Unmarshal(out, &b))
	assert.Equal(t, a, b)
}

// sink collects lines.
type sink struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// Verifies: R1.5
func TestWaitSaysWhyAndEnds(t *testing.T) {
	var asked atomic.Int32
	c, _ := serve(t, 0, func(w http.ResponseWriter, r *http.Request) {
		n := asked.Load()
		switch {
		case r.URL.Path == "/api/status":
			asked.Add(1)
			answer(t, w, status.Status{State: "connecting", NotReady: []string{"no tunnel yet", "no tunnel yet", "FL-N101: refused"}[n]})
		case n < 3:
			refuse(w, errs.New(errs.NoTunnel, "not connected"))
		}
	})
	var out sink
	require.NoError(t, c.Wait(t.Context(), &out, time.Minute))
	assert.Equal(t, "waiting: FL-N108: connecting: no tunnel yet\nwaiting: FL-N108: connecting: FL-N101: refused\n", out.String())
}

func TestWaitTimesOutWithTheLastReason(t *testing.T) {
	c, _ := serve(t, 0, func(w http.ResponseWriter, r *http.Request) { refuse(w, errs.New(errs.TokenExpired, "token old")) })
	err := c.Wait(t.Context(), &sink{}, time.Second)
	assert.ErrorContains(t, err, "not ready after 1s: token old")
	assert.Equal(t, errs.ExitFailed, errs.ExitCode(err))

	c, err = status.NewClient(status.ClientConfig{Address: nobody(t)})
	require.NoError(t, err)
	var out sink
	err = c.Wait(t.Context(), &out, time.Second)
	assert.ErrorIs(t, err, errs.NoSidecar)
	assert.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())

	release := make(chan struct{})
	c, _ = serve(t, time.Minute, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	err = c.Wait(t.Context(), &out, 50*time.Millisecond)
	assert.ErrorIs(t, err, errs.NoSidecar)
	assert.ErrorContains(t, err, "within 50ms")
}

func TestWaitEndsAtOnceWhenTheSidecarHasGivenUp(t *testing.T) {
	c, _ := serve(t, 0, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			refuse(w, errs.New(errs.NoTunnel, "not connected"))
			return
		}
		answer(t, w, status.Status{State: "failed", Events: []status.Event{{Code: "FL-N101", Reason: "refused"}, {Reason: "later"}}})
	})
	err := c.Wait(t.Context(), &sink{}, 0)
	assert.ErrorIs(t, err, errs.GaveUp)
	assert.Equal(t, 4, errs.ExitCode(err))
	assert.ErrorContains(t, err, "FL-N101 refused")

	ctx, cancel := context.WithCancel(t.Context())
	c, _ = serve(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		refuse(w, errs.New(errs.NoTunnel, "no"))
	})
	assert.ErrorIs(t, c.Wait(ctx, &sink{}, 0), errs.Canceled)
}

func describe(st *status.Status, _ time.Time) string {
	if st.Shutdown == nil {
		return st.State
	}
	return fmt.Sprint(st.Shutdown.Phase, " ", st.Shutdown.Connections)
}

// Verifies: R8.10
func TestFollowUntilNothingListens(t *testing.T) {
	var asked atomic.Int32
	started := time.Now()
	phases := []*status.Shutdown{nil, {Phase: "serving", Connections: 2}, {Phase: "serving", Connections: 2}, {Phase: "closing"}}
	c, srv := serve(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		n := int(asked.Add(1)) - 1
		if n == 2 {
			w.WriteHeader(500) // one question without an answer is not the end
			return
		}
		answer(t, w, status.Status{State: "connected", Started: started, Shutdown: phases[min(n, 3)]})
	})
	var out sink
	done := make(chan error, 1)
	go func() { done <- c.Follow(t.Context(), &out, describe) }()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "closing") }, 30*time.Second, time.Millisecond)
	srv.Close()
	require.NoError(t, <-done)
	assert.Equal(t, "connected\nserving 2\nclosing 0\nended\n", out.String())
}

func TestFollowUntilAnotherSidecarAnswers(t *testing.T) {
	var asked atomic.Int32
	c, _ := serve(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		answer(t, w, status.Status{State: "connected", Started: time.Unix(int64(asked.Add(1)), 0)})
	})
	var out sink
	require.NoError(t, c.Follow(t.Context(), &out, describe))
	assert.Equal(t, "connected\nended\n", out.String())

	ctx, cancel := context.WithCancelCause(t.Context())
	c, _ = serve(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		answer(t, w, status.Status{State: "connected"})
		cancel(errors.New("enough"))
	})
	assert.ErrorIs(t, c.Follow(ctx, &out, describe), errs.Canceled)
}
