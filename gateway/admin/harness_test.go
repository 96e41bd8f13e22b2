package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/admin"
	"fairlead/gateway/admin/history"
	"fairlead/gateway/audit"
	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	operatorToken = "0123456789abcdef-operator"
	viewerToken   = "0123456789abcdef-viewer"
)

// api is an API and what has happened behind it.
type api struct {
	*adminapi.Server
	t   *testing.T
	cfg admin.Config
	log testbed.LogBuffer

	mu      sync.Mutex
	did     []string      // changes that took effect, and audit records, in their order
	events  []audit.Event // what the audit log has
	refuses bool          // the audit log cannot be written
	clock   time.Time
}

func (a *api) note(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.did = append(a.did, what)
}

// Record implements audit.Recorder.
func (a *api) Record(e audit.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuses {
		return errs.New(errs.AuditFailed, "the disk is full")
	}
	a.events = append(a.events, e)
	a.did = append(a.did, "audit "+string(e.Result))
	return nil
}

func (a *api) now() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.clock
}

func (a *api) pass(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock = a.clock.Add(d)
}

// taken returns what was recorded since the last call.
func (a *api) taken() []audit.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.events
	a.events = nil
	return all
}

// effects returns what happened since the last call.
func (a *api) effects() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.did
	a.did = nil
	return all
}

var (
	moment  = time.Date(2026, 11, 24, 6, 0, 0, 123456789, time.UTC)
	someMS  = 12.5
	tunnel1 = admin.Tunnel{ID: "t1", Tenant: "payments/app", Subject: "s", Issuer: "i", TokenID: "j", Tier: "gold", Pod: "p-0", Peer: "192.0.2.7", Instance: "gw", Replica: "gw", Via: "gw-b", State: "connected",
		Since: moment, Expires: moment.Add(time.Hour), Streams: 1, Opened: 2, Sent: 3, Received: 4, SentRate: 5.5, ReceivedRate: 6.5, Replayed: 7, Retained: 8, Resumes: 9, RTT: 1.25}
	tunnel2 = admin.Tunnel{ID: "t2", Tenant: "dev", State: "detached", Since: moment.Add(-time.Minute)}
	stream1 = admin.Stream{Tunnel: "t1", ID: "1", Tenant: "payments/app", Subject: "s", Pod: "p-0", Route: "git", Backend: "git", Mode: "passthrough", Priority: "high", App: "127.0.0.1:1",
		Client: "192.0.2.7", Instance: "gw", Since: moment, Opening: 1.5, Sent: 1, Received: 2, SentRate: 3, ReceivedRate: 4}
	backend1 = admin.Backend{Name: "git", Address: "git:22", Breaker: "half-open", Mode: "auto", Failures: 5, RetryAt: moment, ChangedBy: "breaker", FailedAt: moment, Up: new(bool), HealthError: "away", Streams: 1, Waiting: 2, Dialing: 3, LastFailure: "refused",
		Pools: admin.List[admin.Pool]{{Tenant: "dev", Dialing: 1, Channels: 2, Waiting: 3, Reused: 4, Connections: admin.List[admin.Connection]{{ID: "127.0.0.1:1", Server: "SSH-2.0-x", AgeMS: 1, Channels: 2, Opened: 3, Retired: true}}}}}
	revocation1 = admin.Revocation{ID: "r1", TokenID: "j", Subject: "s", Tenant: "dev", Issuer: "i", Reason: "lost", By: "operator", Since: moment, Expires: moment.Add(time.Hour), Ended: 2}
)

// replicas are two, in no order, with a store that is away.
func replicas() admin.ReplicasView {
	return admin.ReplicasView{Self: "gw/1", Store: admin.StoreView{Kind: "redis", Since: moment, Error: "connection refused"},
		Replicas: admin.List[admin.Replica]{{ID: "gw-b/2", Name: "gw-b", Address: "192.0.2.9:8444", Version: "1", Started: moment, Draining: true, Tunnels: 5, Streams: 6},
			{ID: "gw/1", Name: "gw", Address: "192.0.2.8:8444", Version: "1", Started: moment, Tunnels: 1, Streams: 3}},
		Relays: admin.List[admin.Relay]{{Tunnel: "t9", Owner: "gw-b", Client: "192.0.2.7", Since: moment.Add(time.Second), Sent: 1, Received: 2},
			{Tunnel: "t8", Owner: "gw-b", Client: "192.0.2.7", Since: moment, Sent: 3, Received: 4}},
		Leases: admin.LeaseCounts{Held: 1, Lost: 2}, Resumes: admin.ResumeCounts{Same: 3, Relayed: 4, Refused: 5, Lost: 6}}
}

var drain1 = admin.DrainView{Draining: true, Reason: "signal_term", Since: moment, Deadline: moment.Add(30 * time.Second), Tunnels: 7, Streams: 8, Moved: 9, Ended: 10, Phase: admin.Moving}

func diagnostics() admin.Diagnostics {
	return admin.Diagnostics{Instance: "gw", Version: "1", Started: moment, State: "serving", Tunnels: 1, Detached: 2, Streams: 3, Store: "redis", StoreError: "away",
		Issuers:  admin.List[admin.IssuerStatus]{{Issuer: "i", Source: "https://i/jwks", Keys: 1, Fetched: moment, Error: "late", Review: "away"}},
		Audit:    admin.AuditStatus{Enabled: true, File: "audit.log", OnFailure: "refuse", Sequence: 1, Lost: 2, Failing: true, Error: "full", Signed: moment},
		Pressure: admin.Pressure{Level: 1, Retained: 2, Shedding: "low"}, Limits: admin.LimitStatus{Tenants: 1, Tiers: 3}, Revocations: 4,
		Process: admin.ProcessNow(moment), Backends: admin.List[admin.Backend]{backend1, {Name: "idle", Breaker: "closed", Mode: "auto"}}}
}

func missing(what string, ok bool) error {
	if ok {
		return nil
	}
	return errs.New(errs.NotFound, "there is no such %s", what)
}

// full is a Config with everything that a gateway may offer.
func full(a *api) admin.Config {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<title>page</title>") })
	return admin.Config{Listen: "127.0.0.1:0", Ready: func() error { return nil }, Metrics: func(w io.Writer) error { _, err := io.WriteString(w, "up 1\n"); return err },
		Diagnostics: diagnostics,
		Effective: func() []admin.Setting {
			return []admin.Setting{{Key: "listen", Value: ":1", Source: "default"}, {Key: "trusted_proxies", Value: []string{}, Source: "x.yaml:1"}}
		},
		Live: func(after time.Time) admin.Live {
			points := []history.Point{{T: moment, Opens: 1, P50: &someMS, P95: &someMS, P99: &someMS, Resumes: 1}, {T: moment.Add(time.Second)}}
			return admin.Live{Now: moment, Instance: "gw", State: "serving", Started: moment, EveryMS: 2000, Totals: history.Sample{Tunnels: 1},
				History: slices.DeleteFunc(points, func(p history.Point) bool { return !p.T.After(after) })}
		},
		Events: func(after uint64) admin.Events {
			all := []history.Event{{ID: 1, Time: moment, Kind: "connect", Tenant: "dev", Tunnel: "t2", Pod: "p"}, {ID: 2, Time: moment, Kind: "breaker", Route: "r", Backend: "git", Code: "FL-S418", Text: "open"}}
			return admin.Events{Last: 2, Events: slices.DeleteFunc(all, func(e history.Event) bool { return e.ID <= after })}
		},
		Replicas: func(context.Context) (admin.ReplicasView, error) { return replicas(), nil }, DrainProgress: func() admin.DrainView { return drain1 },
		Tunnels:   func() iter.Seq[admin.Tunnel] { return slices.Values([]admin.Tunnel{tunnel1, tunnel2}) },
		EndTunnel: func(id string) error { a.note("end " + id); return missing("tunnel", id == "t1") },
		Streams:   func() iter.Seq[admin.Stream] { return slices.Values([]admin.Stream{stream1}) },
		EndStream: func(tunnel, id string) error {
			a.note("end " + tunnel + "/" + id)
			return missing("stream", tunnel == "t1" && id == "1")
		},
		Tenants: func() iter.Seq[admin.Tenant] {
			return slices.Values([]admin.Tenant{{Tenant: "payments/app", Tier: "gold", Tunnels: 1, Limits: admin.Allowance{Opens: 100}, Left: admin.Allowance{Tunnels: -1}}, {Tenant: "dev"}})
		},
		Backends: func() []admin.Backend { return []admin.Backend{backend1} },
		SetBreaker: func(name, mode, _ string) error {
			a.note("breaker " + mode)
			return missing("backend", name == "git")
		},
		Revocations: func() []admin.Revocation { return []admin.Revocation{revocation1, {ID: "r0"}} },
		Revoke: func(by string, what admin.RevocationRequest) (admin.Revocation, error) {
			a.note("revoke")
			return admin.Revocation{ID: "r2", TokenID: what.TokenID, By: by, Since: moment, Expires: what.Expires}, nil
		},
		Unrevoke: func(id string) error { a.note("unrevoke " + id); return missing("revocation", id == "r1") },
		TestPolicy: func(tenant, route string) admin.Decision {
			return admin.Decision{Allowed: tenant == "dev", Rule: -1, Route: route}
		},
		Reload: func(string) (admin.ReloadResult, error) {
			a.note("reload")
			return admin.ReloadResult{Applied: admin.List[string]{"policy"}, Files: admin.List[string]{"tls.cert_file"}, Ended: 1}, nil
		},
		Drain: func() { a.note("drain") }, Level: func() string { return "info" }, SetLevel: func(level string) error { a.note("level " + level); return nil },
		Page: page, Audit: a, Logger: slog.New(slog.NewTextHandler(&a.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registry: metrics.NewSet(), Now: a.now}
}

// write makes a token file that is old enough to be trusted.
func write(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(file, old, old))
	return file
}

func newAPI(t *testing.T, change func(*admin.Config)) *api {
	a := &api{t: t, clock: time.Now()}
	a.cfg = full(a)
	if change != nil {
		change(&a.cfg)
	}
	return a
}

// serve runs an API on a listener of its own.
func serve(t *testing.T, change func(*admin.Config)) *api {
	t.Helper()
	a := newAPI(t, change)
	var err error
	a.Server, err = admin.New(a.cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- a.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, a.Shutdown(context.Background()))
		assert.NoError(t, <-done)
	})
	return a
}

// withTokens makes an operator and a viewer.
func withTokens(t *testing.T) func(*admin.Config) {
	files := []string{write(t, operatorToken+"\n"), write(t, viewerToken)}
	return func(c *admin.Config) {
		c.TokenFile, c.Tokens = files[0], []admin.Token{{Name: "grafana", Role: admin.Viewer, File: files[1]}}
	}
}

// answer is what came back.
type answer struct {
	*http.Response
	req  *http.Request
	body string
}

func (a *api) request(method, path, body string, header ...string) *http.Request {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://"+a.Addr().String()+path, strings.NewReader(body))
	require.NoError(a.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func (a *api) send(req *http.Request) answer {
	a.t.Helper()
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	return answer{resp, req, string(text)}
}

func (a *api) ask(method, path, body string, header ...string) (int, string) {
	a.t.Helper()
	got := a.send(a.request(method, path, body, header...))
	return got.StatusCode, got.body
}

// local asks a handler as a program on the same machine does.
func local(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1/", strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:1"
	if u, err := r.URL.Parse(path); err == nil {
		r.URL = u
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func as(token string) []string { return []string{"Authorization", "Bearer " + token} }

func (a answer) error(t *testing.T) (e errs.Answer) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(a.body), &e), a.body)
	return e
}

func (a answer) code(t *testing.T) string    { t.Helper(); return a.error(t).Code }
func (a answer) message(t *testing.T) string { t.Helper(); return a.error(t).Message }
