package ui_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/testbed/browser"
	"fairlead/sidecar/admin/ui"
	"fairlead/sidecar/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sidecar answers the page with what a test says.
type sidecar struct {
	*httptest.Server
	mu     sync.Mutex
	status status.Status
	down   bool
}

func serve(t *testing.T, st status.Status) *sidecar {
	t.Helper()
	s := &sidecar{status: st}
	mux := http.NewServeMux()
	page := ui.Handler()
	mux.Handle("GET /{$}", page)
	mux.Handle("GET /ui/", page)
	answer := func(of func() any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.down {
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(of())
		}
	}
	mux.HandleFunc("GET /api/status", answer(func() any { return s.status }))
	mux.HandleFunc("GET /api/history", answer(func() any { return samples(s.status) }))
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func (s *sidecar) set(change func(*status.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// samples is ten minutes of which the last ones are as st is.
func samples(st status.Status) (all []status.Sample) {
	now := time.Now()
	for i := range 600 {
		x := float64(i % 97)
		all = append(all, status.Sample{Time: now.Add(time.Duration(i-600) * time.Second), State: "connected", Sent: 2e5 + 4e3*x, Received: 1e6 + 9e3*float64(i%61), RTT: 20 + x/9,
			Connections: 4 + i/100, Queue: st.Queue.Length * i / 600, SpoolBytes: int64(1e5 * x)})
		if i >= 300 && i < 330 || i >= 540 && st.State != "connected" {
			all[i].State = st.State
			if st.State == "connected" {
				all[i].State = "resuming"
			}
			all[i].RTT, all[i].Sent, all[i].Received = 0, 0, 0
		}
	}
	return all
}

func well() status.Status {
	now := time.Now()
	return status.Status{Instance: "orders-7d9f-x2x4q", Version: "v0.9.2", Started: now.Add(-74 * time.Hour), Profile: "unstable", State: "connected", Since: now.Add(-2 * time.Hour), Ready: true,
		Tunnels: []status.Tunnel{
			{Slot: 1, ID: "8a9c", Endpoint: "wss://gateway.example/v1/tunnel", Replica: "gw-0", Via: "gw-2", State: "connected", Since: now.Add(-2 * time.Hour), RTT: 21.4, Quality: "excellent", Streams: 4, Resumes: 3, Sent: 48e6, Received: 912e6},
			{Slot: 2, ID: "77aa", Endpoint: "wss://gateway.example/v1/tunnel", Replica: "gw-2", State: "connected", Since: now.Add(-2 * time.Hour), RTT: 24, Quality: "excellent", Streams: 1, Resumes: 3, Sent: 11e6, Received: 1.4e9}},
		Queue: status.Queue{Size: 100}, Quality: "excellent", RTT: 21.4, Rates: status.Rates{Sent: 5.8e5, Received: 1.5e6},
		Spool: &status.Spool{Connections: 3, Bytes: 48 << 20, Size: 1 << 30, Oldest: &now, Delivering: 2, Delivered: 912},
		Listeners: []status.Listener{
			{Name: "git", Listen: "127.0.0.1:2222", Route: "git", Priority: "high", Delivery: "stream", Active: 4, Total: 118, Failed: 1, Sent: 31e6, Received: 2e9},
			{Name: "logs", Listen: "127.0.0.1:5140", Route: "logs", Priority: "low", Delivery: "spool", Active: 1, Total: 915, Sent: 28e6}},
		Heartbeat: status.Heartbeat{Interval: "22.5s", Learned: true, Reason: "the path cut two tunnels that had been idle for 30 s"},
		Endpoints: []status.Endpoint{{URL: "wss://gateway.example/", State: "healthy", Active: true, Since: now.Add(-2 * time.Hour)}, {URL: "wss://standby.example/", State: "failing", Since: now.Add(-5 * time.Minute), Error: "FL-N102 cannot connect to standby.example:443"}},
		Events: []status.Event{
			{Time: now.Add(-2 * time.Hour), Tunnel: 1, State: "resuming", Attempt: 1, DelayMS: 120, Endpoint: "wss://gateway.example/v1/tunnel", Code: "FL-N108", Reason: "the lane was lost"},
			{Time: now.Add(-2 * time.Hour).Add(time.Second), Tunnel: 1, State: "connected", Attempt: 1, Endpoint: "wss://gateway.example/v1/tunnel", Reason: "tunnel 8a9c"}}}
}

func reconnecting() status.Status {
	st := well()
	st.State, st.Ready, st.NotReady, st.Quality = "resuming", false, "there is no tunnel to a gateway", "none"
	for i := range st.Tunnels {
		st.Tunnels[i].State, st.Tunnels[i].Quality, st.Tunnels[i].Error = "resuming", "none", "FL-N102 cannot connect to gateway.example:443: connection refused"
	}
	st.Queue = status.Queue{Length: 86, Size: 100, Pressure: true, Waiting: status.Waiting{High: 6, Normal: 30, Low: 50}, Refused: 2, Expired: 1}
	return st
}

func failed() status.Status {
	st := well()
	st.State, st.Ready, st.NotReady, st.Quality = "failed", false, "the sidecar gave up after 10 failed attempts", "none"
	st.Tunnels = []status.Tunnel{{Slot: 1, State: "failed", Endpoint: "wss://gateway.example/v1/tunnel", Error: "FL-N110 gave up"}}
	return st
}

func draining() status.Status {
	st := well()
	st.Ready, st.NotReady = false, "the sidecar is stopping"
	st.Shutdown = &status.Shutdown{Phase: "delivering", Reason: "signal_term", Connections: 2, SpoolBytes: 48 << 20, Deadline: time.Now().Add(8 * time.Second)}
	return st
}

// hostile is a sidecar whose every text wants to be markup.
func hostile() status.Status {
	st := well()
	evil := `<img src=x onerror="window.pwned=1">` + "\u202egnp" + strings.Repeat("x", 300)
	st.Instance, st.Version, st.Profile = evil, evil, evil
	for i := range st.Tunnels {
		st.Tunnels[i].Replica, st.Tunnels[i].Via, st.Tunnels[i].Endpoint, st.Tunnels[i].Error, st.Tunnels[i].ID = evil, evil, evil, evil, evil
	}
	for i := range st.Listeners {
		st.Listeners[i].Listen, st.Listeners[i].Route, st.Listeners[i].Priority = evil, evil, evil
	}
	st.Endpoints[0].URL, st.Endpoints[0].Error, st.Heartbeat.Reason = evil, evil, evil
	st.Events[0].Reason, st.Events[0].Endpoint, st.Events[0].Code, st.Events[0].State = evil, evil, evil, evil
	st.Spool.Error = evil
	return st
}

// visitor is a tab with the page, in which nothing may go wrong.
type visitor struct {
	*browser.Tab
	t *testing.T
}

func visit(t *testing.T, b *browser.Browser, s *sidecar, view browser.View) visitor {
	t.Helper()
	v := visitor{b.NewTab(t, view), t}
	require.NoError(t, v.Go(s.URL))
	t.Cleanup(func() {
		assert.Empty(t, v.Elsewhere(s.URL))
		assert.Equal(t, "undefined", eval[string](v, `typeof window.pwned`))
	})
	v.wait(`document.getElementById('link').dataset.link === 'live' && document.querySelector('#listeners tbody tr')`)
	return v
}

func (v visitor) wait(expression string, args ...any) {
	v.t.Helper()
	require.NoError(v.t, v.Wait(fmt.Sprintf(expression, args...)))
}

func eval[T any](v visitor, expression string) T {
	v.t.Helper()
	value, err := browser.Eval[T](v.Tab, expression)
	require.NoError(v.t, err, expression)
	return value
}

func (v visitor) text(selector string) string {
	v.t.Helper()
	return eval[string](v, fmt.Sprintf(`(document.querySelector(%q)?.innerText ?? 'there is none').replaceAll('\u00a0', ' ')`, selector))
}

// Verifies: R3.9, R1.5
func TestThePageShowsWhatTheSidecarTells(t *testing.T) {
	s := serve(t, well())
	v := visit(t, browser.New(t), s, browser.View{})
	assert.Equal(t, "orders-7d9f-x2x4q", v.text("#instance"))
	assert.Equal(t, "connected", v.text("#state"))
	assert.Equal(t, "excellent", v.text("#quality"))
	assert.Equal(t, "580 kB/s", v.text("#tile-sent"))
	assert.Equal(t, "21 ms", v.text("#tile-rtt"))
	assert.Equal(t, "2 tunnels, 5 streams", v.text("#tunnels-sum"))
	assert.Contains(t, v.text("#tunnels"), "gw-0 via gw-2")
	assert.Contains(t, v.text("#listeners"), "logs, spooled")
	assert.Contains(t, v.text("#endpoints"), "FL-N102 cannot connect to standby.example:443")
	assert.Equal(t, "heartbeat 22.5s, learned", v.text("#heartbeat"))
	assert.Contains(t, v.text("#spool"), "3 connections kept")
	assert.Equal(t, "there is none", v.text("#trouble:not([hidden])"))
	assert.Regexp(t, `^connected [5-9] min( \d+ s)?, resuming 30 s$`, v.text("#timeline-sum"))
	assert.Equal(t, []string{"good", "warn", "good"}, eval[[]string](v, `[...document.querySelectorAll('#timeline rect')].map((r) => r.dataset.tone)`))
	for _, chart := range []string{"throughput", "rtt", "connections", "spool"} {
		assert.Contains(t, eval[string](v, fmt.Sprintf(`document.querySelector('#chart-%s .plot').getAttribute('aria-label')`, chart)), "last 10 minutes. Now:")
	}
	s.set(func(st *status.Status) { st.Spool = nil })
	v.wait(`document.getElementById('spool-panel').hidden && document.getElementById('chart-spool').hidden`)
	first := v.text("#events li")
	assert.Contains(t, first, "tunnel 8a9c", "the newest comes first")
	assert.Empty(t, v.Complaints())
}

// Verifies: R1.5, R5.3, R8.10
func TestThePageFollows(t *testing.T) {
	s := serve(t, well())
	v := visit(t, browser.New(t), s, browser.View{})
	s.set(func(st *status.Status) { *st = reconnecting() })
	v.wait(`document.getElementById('state').textContent === 'resuming'`)
	assert.Equal(t, "Connections are not carried now: there is no tunnel to a gateway.", v.text("#trouble"))
	assert.Equal(t, "back-pressure", v.text("#pressure"))
	assert.Contains(t, v.text("#tunnels-why"), "tunnel 1, for 2 h: FL-N102 cannot connect to gateway.example:443: connection refused")
	assert.Contains(t, v.text("#queue"), "86 connections of 100 wait: 6 high, 30 normal, 50 low")
	assert.Contains(t, v.text("#queue"), "2 refused, 1 waited too long")
	assert.Contains(t, eval[string](v, `document.title`), "resuming")

	s.set(func(st *status.Status) { *st = failed() })
	v.wait(`document.getElementById('trouble').dataset.tone === 'bad'`)
	assert.Contains(t, v.text("#trouble"), "gave up after 10 failed attempts")
	assert.Equal(t, "1 tunnel, 0 streams", v.text("#tunnels-sum"), "slots that are gone are no longer shown")

	s.set(func(st *status.Status) { *st = draining() })
	v.wait(`document.getElementById('state').textContent === 'delivering'`)
	assert.Regexp(t, `^Stopping \(signal_term\): delivering, 2 connections open, 50 MB in the spool, \d+ s left`, v.text("#trouble"))

	s.set(func(*status.Status) { s.down = true })
	v.wait(`document.getElementById('link').dataset.link === 'lost'`)
	assert.Contains(t, v.text("#link"), "trying again")
	s.set(func(st *status.Status) { s.down, *st = false, well() })
	v.wait(`document.getElementById('link').dataset.link === 'live' && document.getElementById('state').textContent === 'connected'`)
}

// Samples are asked for once, and from then on only what is new; a sidecar that was started anew is asked for all again.
// What a listener carries is told by how its totals grow.
func TestThePageAsksForWhatIsNew(t *testing.T) {
	s := serve(t, well())
	v := visit(t, browser.New(t), s, browser.View{})
	asked := func() (all []string) {
		for _, r := range v.Requests() {
			if _, query, found := strings.Cut(r, "/api/history"); found {
				all = append(all, query)
			}
		}
		return all
	}
	grow := func() { s.set(func(st *status.Status) { st.Listeners[0].Sent += 50e6 }) }
	grow()
	v.wait(`/^[1-9][\d.]* MB\/s$/.test(document.querySelector('#listeners tbody tr td:nth-child(9)').textContent)`)
	queries := asked()
	require.Greater(t, len(queries), 1)
	assert.Empty(t, queries[0])
	for _, q := range queries[1:] {
		assert.Regexp(t, `^\?after=20\d\d-`, q)
	}
	s.set(func(st *status.Status) { st.Started, st.Listeners[0].Sent = time.Now(), 0 })
	v.wait(`!document.getElementById('uptime').textContent.startsWith('up 3 d')`)
	after := asked()[len(queries):]
	assert.Contains(t, after, "", "all of the new course")
	assert.NotContains(t, v.text("#listeners"), "-", "no rate is negative")
}

func TestHostileTextStaysText(t *testing.T) {
	v := visit(t, browser.New(t), serve(t, hostile()), browser.View{})
	assert.Zero(t, eval[int](v, `document.querySelectorAll('main img').length`))
	assert.Contains(t, v.text("#instance"), `<img src=x onerror=`)
	assert.NotContains(t, v.text("body"), "\u202e")
	assert.Empty(t, v.Complaints())
}

// TestScreenshots takes pictures for people to look at: go test -artifacts -outputdir DIR.
func TestScreenshots(t *testing.T) {
	b := browser.New(t)
	for name, shot := range map[string]struct {
		of   status.Status
		view browser.View
	}{
		"wide":         {well(), browser.View{Width: 1440, Height: 960}},
		"dark":         {reconnecting(), browser.View{Width: 1440, Height: 960, Dark: true}},
		"failed":       {failed(), browser.View{Width: 1100, Height: 960}},
		"phone":        {draining(), browser.View{Width: 390, Height: 844, Mobile: true}},
		"hostile":      {hostile(), browser.View{Width: 1440, Height: 960}},
		"hostilephone": {hostile(), browser.View{Width: 390, Height: 844, Mobile: true}},
	} {
		t.Run(name, func(t *testing.T) {
			v := visit(t, b, serve(t, shot.of), shot.view)
			require.NoError(t, v.Screenshot(filepath.Join(t.ArtifactDir(), name+".png"), true))
			assert.LessOrEqual(t, eval[int](v, `document.documentElement.scrollWidth`), shot.view.Width, "nothing sticks out sideways")
		})
	}
}

func TestNothingInlineAndNothingFromElsewhere(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|localStorage|(?i:<script>|<style|\sstyle=|\son\w+=|https?://|url\(|@import)`)
	names, err := filepath.Glob("static/*")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		raw, err := os.ReadFile(name)
		require.NoError(t, err)
		assert.Empty(t, forbidden.FindAllString(string(raw), -1), name)
	}
}
