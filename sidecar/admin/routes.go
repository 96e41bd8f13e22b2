package admin

import (
	"net/http"
	"time"

	"fairlead/shared/adminapi"
	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/status"
)

// route is one request that the API takes. The table of routes is what is served, and what docs/sidecar-openapi.json and
// the table in docs/api.md are made from.
type route struct {
	method, path string
	open         bool   // for everybody who can connect, also from elsewhere
	summary      string // what the answer is, or what it does

	query  any    // a pointer to the struct that the query is read into; nil: it is not looked at
	body   any    // a pointer to the struct that the body is read into; nil: it is not looked at
	word   string // the field of body that a body of plain text is
	status int    // of success
	answer any    // a value of the type that is answered as JSON; nil: media says what it is
	media  string // content type of an answer that is no JSON
	codes  []errs.Code

	do http.HandlerFunc // nil: package adminapi serves it, or this sidecar does not offer it
}

// since is a query that asks only for what is new.
type since struct {
	After time.Time `json:"after,omitzero" doc:"only what came after this moment"`
}

// level is the body that changes how much is logged.
type level struct {
	Level string `json:"level" required:"true" enum:"error,warn,info,debug,trace" doc:"how much is logged"`
}

// done is the answer to what has no other.
type done struct{}

const plainText = "text/plain; charset=utf-8"

func (s *Server) table() []route {
	cfg := &s.cfg
	var configuration, reload http.HandlerFunc
	if cfg.Configuration != nil {
		configuration = adminapi.Show(func() any { return filled(cfg.Configuration()) })
	}
	if cfg.Reload != nil {
		reload = s.reload
	}
	return []route{
		{method: "GET", path: "/healthz", open: true, summary: "200 while the process runs", status: 200, media: plainText},
		{method: "GET", path: "/startupz", open: true, summary: "200 once the configuration is valid and everything is bound", status: 200, media: plainText},
		{method: "GET", path: "/readyz", open: true, summary: "200 when a connection would be carried; else 503, which says why not", status: 200, media: plainText,
			codes: []errs.Code{errs.NoTunnel, errs.ShuttingDown, errs.GaveUp}},
		{method: "GET", path: "/metrics", open: true, summary: "Prometheus text", status: 200, media: "text/plain; version=0.0.4; charset=utf-8"},
		{method: "GET", path: "/api/status", summary: "how the sidecar is", status: 200, answer: status.Status{}, do: adminapi.Show(func() any { return s.status() })},
		{method: "GET", path: "/api/history", summary: "a sample of each second of the last ten minutes, oldest first", status: 200, query: &since{}, answer: []status.Sample{}, do: s.samples},
		{method: "GET", path: "/api/events", summary: "the last 100 events of tunnels, oldest first", status: 200, query: &since{}, answer: []status.Event{}, do: s.events},
		{method: "GET", path: "/api/config", summary: "every key of the configuration with its value and where it comes from; secrets are masked", status: 200, answer: []config.Entry{},
			codes: []errs.Code{errs.NotFound}, do: configuration},
		{method: "GET", path: "/api/openapi.json", summary: "this API as an OpenAPI 3.1 document", status: 200, media: "application/json", do: s.openapi},
		{method: "POST", path: "/api/reconnect", summary: "tries again now, also after having given up", status: 202, answer: done{}, do: adminapi.Do(cfg.Reconnect)},
		{method: "POST", path: "/api/drain", summary: "stops once the application's connections have ended and the spool is delivered, or `shutdown.drain` is over", status: 202, answer: done{}, do: adminapi.Do(cfg.Drain)},
		{method: "POST", path: "/quitquitquit", summary: "stops; for jobs that end their sidecar", status: 202, answer: done{}, do: adminapi.Do(cfg.Quit)},
		{method: "POST", path: "/api/reload", summary: "reads the configuration anew, and says what changed; one that is not valid changes nothing", status: 200, answer: status.Reloaded{},
			codes: []errs.Code{errs.NotFound, errs.ConfigInvalid, errs.ConfigUnreadable}, do: reload},
		{method: "PUT", path: "/api/log-level", summary: "changes how much is logged, until the next restart or reload", status: 200, body: &level{}, word: "level", answer: done{}},
	}
}

func (s *Server) routes(mux *http.ServeMux) {
	for _, r := range s.table() {
		if r.do != nil {
			mux.HandleFunc(r.method+" "+r.path, r.do)
		}
	}
	if s.cfg.Routes != nil {
		s.cfg.Routes(mux)
	}
	mux.Handle("GET /{$}", s.page)
	mux.Handle("GET /ui/", s.page)
}

// refusals are the codes that a request may be refused with.
func (r *route) refusals() []errs.Code {
	var codes []errs.Code
	if !r.open {
		codes = append(codes, errs.AdminDenied)
	}
	if r.query != nil || r.body != nil {
		codes = append(codes, errs.BadRequest)
	}
	return append(codes, r.codes...)
}

// filled makes an empty list of one that would be told as null.
func filled[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
