package ui_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"fairlead/gateway/admin/ui"
)

const (
	viewer   = "viewer-token-0123456789"
	operator = "operator-token-0123456789"
)

// gateway is an admin API with figures of its own, in front of which the page is tested. It answers in the shapes of
// the real one; what it tells depends on nothing but its settings and the time.
type gateway struct {
	*httptest.Server
	prefix string

	mu      sync.Mutex
	guarded bool                // asks for a token
	down    bool                // breaks every connection
	without map[string]bool     // lists that it does not know: live, events, …
	pages   bool                // lists come in pages
	links   bool                // and the next one is told by a header
	points  []int               // how many each answer of live had
	started time.Time           // when it says it was started
	state   string              // that it says it is in
	data    data                // what it tells
	asked   map[string]int      // how often, by path
	did     []string            // requests that change something, with their bodies
	headers map[string][]string // of the last request to the API
}

// serve starts a gateway until the test ends. prefix is what a proxy in front would put before its paths, "" or "/x".
func serve(t *testing.T, prefix string, d data) *gateway {
	g := &gateway{prefix: prefix, started: time.Now().Add(-74 * time.Hour), state: "serving", data: d, asked: map[string]int{}, without: map[string]bool{}}
	mux := http.NewServeMux()
	page := ui.Handler()
	mux.Handle("GET /{$}", page)
	mux.Handle("GET /ui/", page)
	mux.HandleFunc("/api/", g.api)
	g.Server = httptest.NewServer(http.StripPrefix(prefix, mux))
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) page() string { return g.URL + g.prefix + "/" }

// set changes its settings while it runs.
func (g *gateway) set(change func(*gateway)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

func (g *gateway) count(path string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[path]
}

func (g *gateway) acts() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.did...)
}

func (g *gateway) api(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked[r.URL.Path]++
	g.headers = r.Header.Clone()
	what := strings.TrimPrefix(r.URL.Path, "/api/")
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case g.down:
		conn, _, _ := w.(http.Hijacker).Hijack()
		_ = conn.Close()
	case g.guarded && token != viewer && token != operator:
		refuse(w, 401, "FL-A208", "the admin token is missing or wrong")
	case r.Method != http.MethodGet:
		g.act(w, r, !g.guarded || token == operator)
	case g.without[what]:
		refuse(w, 404, "FL-S419", "there is nothing")
	default:
		g.tell(w, r, what)
	}
}

func (g *gateway) act(w http.ResponseWriter, r *http.Request, may bool) {
	if !may {
		refuse(w, 403, "FL-A213", "the viewer's token may look only")
		return
	}
	body, _ := io.ReadAll(r.Body)
	g.did = append(g.did, r.Method+" "+r.URL.Path+" "+string(body))
	if name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/api/backends/"), "/breaker"); ok {
		var mode struct{ Mode string }
		_ = json.Unmarshal(body, &mode)
		for _, b := range g.data.backends {
			if b["name"] == name {
				b["mode"], b["breaker"] = mode.Mode, map[string]string{"open": "open"}[mode.Mode]
				if b["breaker"] == "" {
					b["breaker"] = "closed"
				}
			}
		}
	}
	if id, ok := strings.CutPrefix(r.URL.Path, "/api/tunnels/"); ok {
		g.data.drop(id)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, object{})
}

func (g *gateway) tell(w http.ResponseWriter, r *http.Request, what string) {
	now := time.Now()
	switch what {
	case "live":
		since, _ := time.Parse(time.RFC3339Nano, r.URL.Query().Get("after"))
		g.points = append(g.points, len(g.data.history(now, since)))
		answer(w, object{"now": now, "instance": "gw-7c9f-x2x4q", "version": "v0.9.2", "state": g.state, "started": g.started,
			"totals": g.data.totals(now), "history": g.data.history(now, since)})
	case "events":
		answer(w, object{"events": g.data.events(now, r.URL.Query().Get("after")), "last": len(g.data.happened)})
	case "tunnel/diagnostics":
		answer(w, object{"instance": "gw-old", "version": "v0.1.0", "state": "draining", "started": g.started, "tunnels": 3, "tunnels_detached": 1, "streams": 9})
	case "replicas":
		answer(w, g.data.cluster)
	case "drain":
		answer(w, g.data.drain)
	case "tunnels":
		g.list(w, r, g.data.tunnels)
	case "streams":
		g.list(w, r, g.data.streams)
	case "backends":
		g.list(w, r, g.data.backends)
	case "tenants":
		g.list(w, r, g.data.tenants)
	default:
		refuse(w, 404, "FL-S419", "there is nothing")
	}
}

// list answers an array, or a page of seven: as an object, or with the next one in a header.
func (g *gateway) list(w http.ResponseWriter, r *http.Request, all []object) {
	if !g.pages {
		answer(w, all)
		return
	}
	begin := 0
	if after := r.URL.Query().Get("after"); after != "" {
		_ = json.Unmarshal([]byte(after), &begin)
	}
	end, page := min(begin+7, len(all)), object{}
	page["items"] = all[begin:end]
	if end < len(all) {
		page["next"] = end
		w.Header().Set("Link", fmt.Sprintf(`</elsewhere%s?limit=5000&after=%d>; rel="next"`, r.URL.Path, end))
	}
	if g.links {
		answer(w, all[begin:end])
		return
	}
	w.Header().Del("Link")
	answer(w, page)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object{"code": code, "message": message, "advice": ""})
}
