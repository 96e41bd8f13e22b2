package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	sidecarconfig "fairlead/sidecar/config"
)

// outage is a way in which the network is away, and how it comes back.
type outage struct {
	name       string
	begin, end func(*world) error
}

func outages() []outage {
	return []outage{
		{"refused", func(w *world) error { err := w.proxy.Refuse(); w.proxy.Cut(); return err }, func(w *world) error { return w.proxy.Accept() }},
		{"stalled", func(w *world) error { w.proxy.Stall(); return nil }, func(w *world) error { w.proxy.Resume(); return nil }},
		{"swallowed", func(w *world) error { w.proxy.Blackhole(); return nil }, func(w *world) error { w.proxy.Resume(); return nil }},
	}
}

// Outages of half a second to eight, in each way, at the settings that everybody has who configures none of it: the time
// from the network's return until the connection that was open flows again, and until one does that began in the outage.
//
// Verifies: R1.8, R10.5
func TestConnectionsFlowSoonAfterAnOutage(t *testing.T) {
	const bound = 5 * time.Second
	lengths := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 8 * time.Second}
	var mu sync.Mutex
	var took []time.Duration
	var sites sync.WaitGroup
	for site := range 6 {
		w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), withSidecar(func(c *sidecarconfig.Config) { c.Reconnect = sidecarconfig.Default().Reconnect }))
		rng := rand.New(rand.NewPCG(7, uint64(site)))
		sites.Go(func() {
			for i := range lengths {
				how, length := outages()[(site+i)%3], lengths[(site+i)%len(lengths)]
				old, fresh, err := w.recovery(how, time.Duration(float64(length)*(0.75+rng.Float64()/2)))
				if !assert.NoError(t, err, "%s for about %v", how.name, length) {
					return
				}
				mu.Lock()
				took = append(took, old, fresh)
				mu.Unlock()
			}
		})
	}
	sites.Wait()
	require.Len(t, took, 6*2*len(lengths))
	slices.Sort(took)
	p95 := took[int(math.Ceil(0.95*float64(len(took))))-1]
	t.Logf("%d recoveries: median %v, p95 %v, longest %v", len(took), took[len(took)/2], p95, took[len(took)-1])
	require.Less(t, p95, bound)
}

// recovery lets the network be away for a while, and measures from its return until an open connection and one that began
// meanwhile have made a round trip.
func (w *world) recovery(how outage, length time.Duration) (old, fresh time.Duration, err error) {
	addr := w.sidecar.addresses["echo"]
	open, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer open.Close()
	if err := roundTrip(open, "before"); err != nil {
		return 0, 0, err
	}
	if err := how.begin(w); err != nil {
		return 0, 0, err
	}
	waiting, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer waiting.Close()
	results := make(chan error, 2)
	var flowed [2]time.Time
	for i, c := range []net.Conn{open, waiting} {
		go func() {
			err := roundTrip(c, "through the outage")
			flowed[i] = time.Now()
			results <- err
		}()
	}
	<-time.After(length) // this is what is tested
	back := time.Now()
	if err := how.end(w); err != nil {
		return 0, 0, err
	}
	for range 2 {
		if err := <-results; err != nil {
			return 0, 0, err
		}
	}
	return flowed[0].Sub(back), flowed[1].Sub(back), nil
}

// Without a tunnel, connections wait: as many as the queue holds, for people and programs to see. One more is refused with
// the reason. When the network comes, they go in the order of their priority, and each where it belongs.
//
// Verifies: R1.3, R1.4, R5.1, R5.2, R5.4
func TestConnectionsWaitForATunnel(t *testing.T) {
	queue := sidecarconfig.Default().Queue
	require.Equal(t, []any{100, 30 * time.Second}, []any{queue.Size, queue.Wait})
	w := newWorld(t, withQuickLink(), withoutWaiting(), withTarget("normal", newTarget(t, echoServer)),
		withListener("high", "normal", "high"), withListener("low", "normal", "low"),
		withSidecar(func(c *sidecarconfig.Config) { c.Queue = sidecarconfig.Queue{Size: 6, Wait: patience} }),
		func(w *world) { w.afterwards = append(w.afterwards, func() { require.NoError(t, w.proxy.Refuse()) }) })
	var waiting []halfCloser
	for i, listener := range []string{"low", "normal", "high", "low", "normal", "high"} {
		c := w.dial(listener)
		_, err := io.WriteString(c, listener+" waits")
		require.NoError(t, err)
		waiting = append(waiting, c)
		await(t, "the connection waits", func() bool { return w.status().Queue.Length == i+1 })
	}
	require.Equal(t, 6, w.status().Queue.Size)
	require.Equal(t, 503, statusOf(w.sidecar.url("/readyz")), "a connection would not work now")
	require.Contains(t, get(t, w.sidecar.url("/metrics")), "fairlead_sidecar_queue_length")

	requireReset(t, w.dial("low")) // nobody is less important
	refused := w.sidecar.logs.wait(t, "connection refused", "code", code(errs.QueueFull))
	require.Equal(t, "low", refused.str("listener"))
	require.Contains(t, refused.str("error"), "6 connections wait")
	require.Equal(t, 1.0, metric(t, w.sidecar.url("/metrics"), "fairlead_sidecar_queue_refused_total"))
	urgent := w.dial("high") // takes the place of the newest of the lowest priority
	_, err := io.WriteString(urgent, "high waits")
	require.NoError(t, err)
	requireReset(t, waiting[3])
	await(t, "the queue is full again", func() bool {
		return len(w.sidecar.logs.find("connection refused")) == 2 && w.status().Queue.Length == 6
	})
	require.Equal(t, 2.0, metric(t, w.sidecar.url("/metrics"), "fairlead_sidecar_queue_refused_total"))

	require.NoError(t, w.proxy.Accept())
	waiting[3] = urgent
	for i, c := range waiting {
		want := []string{"low", "normal", "high", "high", "normal", "high"}[i] + " waits"
		got := make([]byte, len(want))
		_, err := io.ReadFull(c, got)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	await(t, "all are released", func() bool { return w.status().Queue.Length == 0 && len(w.sidecar.logs.find("connection opened")) == 6 })
	order := make([]string, 6) // by stream, which are numbered as they are opened
	for _, e := range w.sidecar.logs.find("connection opened") {
		n, err := strconv.Atoi(e.str("stream"))
		require.NoError(t, err)
		order[n-1] = e.str("listener")
	}
	require.Equal(t, []string{"high", "high", "high", "normal", "normal", "low"}, order)
}

// metric is the value of a metric, summed over the labels that it has.
func metric(t *testing.T, url, name string) (sum float64) {
	t.Helper()
	found := false
	for line := range strings.Lines(get(t, url)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		require.NoError(t, err)
		sum, found = sum+v, true
	}
	require.True(t, found, "no metric %s", name)
	return sum
}

// Who waits longer than is allowed is told why, and by an error rather than an end.
//
// Verifies: R5.1, R5.4
func TestWaitingForATunnelEnds(t *testing.T) {
	const wait = 150 * time.Millisecond
	w := newWorld(t, withoutWaiting(), withTarget("echo", newTarget(t, echoServer)),
		withSidecar(func(c *sidecarconfig.Config) { c.Queue.Wait = wait }),
		func(w *world) { w.afterwards = append(w.afterwards, func() { require.NoError(t, w.proxy.Refuse()) }) })
	requireReset(t, w.dial("echo"))
	line := w.sidecar.logs.wait(t, "connection refused", "code", code(errs.NoTunnel))
	require.GreaterOrEqual(t, line["waited_ms"], float64(wait.Milliseconds()))
	require.Contains(t, line.str("error"), wait.String())
	require.NotEmpty(t, line.str("advice"))
	require.Equal(t, 1.0, metric(t, w.sidecar.url("/metrics"), "fairlead_sidecar_queue_expired_total"))
	require.Zero(t, w.status().Queue.Length)
}

// Every attempt is in the log with its number, endpoint and reason, and with the delay before the next one, which is at
// random below a bound that doubles up to the cap; and which is kept.
//
// Verifies: R1.1, R1.10
func TestAttemptsAreDelayedAndLogged(t *testing.T) {
	usual := sidecarconfig.Default().Reconnect
	require.Equal(t, []time.Duration{200 * time.Millisecond, 30 * time.Second}, []time.Duration{usual.Base, usual.Cap})
	const base, most, attempts = 20 * time.Millisecond, 150 * time.Millisecond, 12
	w := newWorld(t, withoutWaiting(), withTarget("echo", newTarget(t, echoServer)),
		withSidecar(func(c *sidecarconfig.Config) {
			c.Reconnect = sidecarconfig.Reconnect{Base: base, Cap: most, Enabled: true}
		}),
		func(w *world) { w.afterwards = append(w.afterwards, func() { require.NoError(t, w.proxy.Refuse()) }) })
	await(t, "attempts", func() bool { return len(w.sidecar.logs.find("tunnel connecting")) > attempts })
	begun, failed := w.sidecar.logs.find("tunnel connecting"), w.sidecar.logs.find("tunnel disconnected")
	endpoint := "wss://" + w.proxy.Addr() + "/v1/tunnel"
	delays := map[float64]bool{}
	for i := range attempts {
		n, e := float64(i+1), failed[i]
		require.Equal(t, n, begun[i]["attempt"])
		require.Equal(t, endpoint, begun[i].str("endpoint"))
		require.Equal(t, n, e["attempt"])
		require.Equal(t, endpoint, e.str("endpoint"))
		require.Equal(t, code(errs.DialFailed), e.str("code"))
		require.Contains(t, e.str("error"), w.proxy.Addr())
		bound := min(float64(base)*math.Pow(2, float64(i)), float64(most)) / float64(time.Millisecond)
		require.LessOrEqual(t, e["delay_ms"], bound, "attempt %v", n)
		delays[e["delay_ms"].(float64)] = true
		// Milliseconds are cut off in the log, so the next attempt begins not before them.
		require.GreaterOrEqual(t, timeOf(t, begun[i+1]).Sub(timeOf(t, e)), time.Duration(e["delay_ms"].(float64))*time.Millisecond)
	}
	require.Greater(t, len(delays), attempts/3, "the delays are at random")
}

func timeOf(t *testing.T, e entry) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, e.str("time"))
	require.NoError(t, err)
	return at
}

// A server that says when to come again is obeyed, whichever way it says it.
//
// Verifies: R1.1
func TestAServersDelayWins(t *testing.T) {
	for name, refuse := range map[string]http.HandlerFunc{
		"as JSON": func(w http.ResponseWriter, _ *http.Request) {
			status, body := errs.HTTP(errs.New(errs.Draining, "not now").After(time.Second))
			w.WriteHeader(status)
			_, _ = w.Write(body)
		},
		"as Retry-After": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(refuse)
			defer server.Close()
			w := newWorld(t, withPlaintext(), withoutWaiting(), withTarget("echo", newTarget(t, echoServer)),
				func(w *world) { w.afterwards = append(w.afterwards, func() { w.pointAt(server.Listener.Addr()) }) })
			e := w.sidecar.logs.wait(t, "tunnel disconnected")
			require.Equal(t, 1000.0, e["delay_ms"], "far above the bound of the backoff")
			await(t, "the next attempt", func() bool { return len(w.sidecar.logs.find("tunnel connecting")) > 1 })
			require.GreaterOrEqual(t, timeOf(t, w.sidecar.logs.find("tunnel connecting")[1]).Sub(timeOf(t, e)), time.Second)
		})
	}
}

// pointAt lets the sidecar dial another server than the world's gateway.
func (w *world) pointAt(addr net.Addr) {
	w.sidecarConfig.Gateway.Endpoints = []string{w.endpoint(addr.String())}
}

// A server that is no gateway is named: what it answered, what it calls itself, and how its page begins.
//
// Verifies: R6.8
func TestAnswersThatAreNoUpgradeAreNamed(t *testing.T) {
	for _, page := range []struct {
		status       int
		server, body string
		want         []string
	}{
		{502, "nginx/1.25.3", "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n", []string{"502 Bad Gateway", `"nginx/1.25.3"`, `"<html>"`}},
		{404, "Apache", "no such page\n", []string{"404 Not Found", `"Apache"`, `"no such page"`}},
		{200, "", "Welcome!", []string{"200 OK", "does not say its name", `"Welcome!"`}},
		{403, "proxy", strings.Repeat("long ", 100), []string{"403 Forbidden", `"proxy"`, `long long`}},
	} {
		t.Run(fmt.Sprint(page.status), func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Server", page.server)
				if page.server == "" {
					w.Header()["Server"] = nil
				}
				w.WriteHeader(page.status)
				_, _ = io.WriteString(w, page.body)
			}))
			defer server.Close()
			w := newWorld(t, withPlaintext(), withoutWaiting(), withTarget("echo", newTarget(t, echoServer)),
				func(w *world) { w.afterwards = append(w.afterwards, func() { w.pointAt(server.Listener.Addr()) }) })
			e := w.sidecar.logs.wait(t, "tunnel disconnected", "code", code(errs.UpgradeFailed))
			for _, want := range append(page.want, server.Listener.Addr().String()) {
				require.Contains(t, e.str("error"), want)
			}
			require.Less(t, len(e.str("error")), 500, "a page is not a log line")
			raw, err := json.Marshal(w.status())
			require.NoError(t, err)
			require.Contains(t, string(raw), fmt.Sprint(page.status), "the status tells it too")
		})
	}
}
