package admin

import (
	"net/http"
	"net/http/pprof"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

// The groups of the documentation.
const (
	health   = "health"
	state    = "state"
	tunnels  = "tunnels and streams"
	backends = "backends"
	access   = "access"
	process  = "the process"
)

const (
	plainText  = "text/plain; charset=utf-8"
	prometheus = "text/plain; version=0.0.4; charset=utf-8"
	binary     = "application/octet-stream"
)

// routes is the table.
func (a *api) routes() []*route {
	var all []*route
	for _, part := range [][]*route{a.healthRoutes(), a.stateRoutes(), a.tunnelRoutes(), a.backendRoutes(), a.accessRoutes(), a.processRoutes(), profileRoutes()} {
		all = append(all, part...)
	}
	return all
}

func (a *api) healthRoutes() []*route {
	c := &a.cfg
	return []*route{
		{method: "GET", path: "/healthz", role: Anyone, group: health, media: plainText, summary: "200 while the process runs", raw: adminapi.Alive},
		{method: "GET", path: "/startupz", role: Anyone, group: health, media: plainText, summary: "200 once everything is bound", raw: adminapi.Alive},
		{method: "GET", path: "/readyz", role: Anyone, group: health, media: plainText, summary: "200 when a connection would work",
			codes: []errs.Code{errs.Draining}, raw: adminapi.Ready(c.Ready)},
		{method: "GET", path: "/metrics", role: Anyone, group: health, media: prometheus, summary: "Prometheus text", raw: adminapi.Metrics(c.Metrics)},
	}
}

func (a *api) stateRoutes() []*route {
	c := &a.cfg
	return []*route{
		{method: "GET", path: "/api/tunnel/diagnostics", role: Viewer, group: state, answer: Diagnostics{}, summary: "how the gateway is", do: a.diagnostics},
		{method: "GET", path: "/api/tunnel/config", role: Viewer, group: state, answer: List[Setting]{},
			summary: "every key of the configuration with its value and where it comes from; secrets are masked", do: a.effective},
		{method: "GET", path: "/api/tunnel/metrics", role: Viewer, group: state, media: prometheus, summary: "Prometheus text", raw: adminapi.Metrics(c.Metrics)},
		{method: "GET", path: "/api/live", role: Viewer, group: state, query: &LiveQuery{}, answer: Present{}, summary: "figures of the present and of the last minutes",
			has: func(c *Config) bool { return c.Live != nil }, do: a.live},
		{method: "GET", path: "/api/events", role: Viewer, group: state, query: &EventQuery{}, answer: Events{}, summary: "what has happened lately",
			has: func(c *Config) bool { return c.Events != nil }, do: a.events},
		{method: "GET", path: "/api/replicas", role: Viewer, group: state, answer: ReplicasView{}, codes: []errs.Code{errs.StoreUnavailable},
			summary: "the replicas of the gateway, the store that they share, and what this one does for the others", do: a.replicas},
		{method: "GET", path: "/api/openapi.json", role: Viewer, group: state, media: "application/json", summary: "this API as an OpenAPI 3.1 document", raw: a.openapi},
	}
}

func (a *api) tunnelRoutes() []*route {
	return []*route{
		{method: "GET", path: "/api/tunnels", role: Viewer, group: tunnels, query: &TunnelQuery{}, answer: List[Tunnel]{}, summary: "the tunnels, oldest first, in pages",
			do: a.tunnelList},
		{method: "GET", path: "/api/tunnels/{id}", role: Viewer, group: tunnels, answer: Tunnel{}, summary: "one tunnel", do: a.tunnel},
		{method: "DELETE", path: "/api/tunnels/{id}", role: Operator, group: tunnels, changes: true, status: http.StatusNoContent,
			summary: "ends a tunnel; its sidecar may connect again", do: a.endTunnel},
		{method: "GET", path: "/api/streams", role: Viewer, group: tunnels, query: &StreamQuery{}, answer: List[Stream]{}, summary: "the streams, oldest first, in pages",
			has: func(c *Config) bool { return c.Streams != nil }, do: a.streamList},
		{method: "DELETE", path: "/api/streams/{tunnel}/{id}", role: Operator, group: tunnels, changes: true, status: http.StatusNoContent, summary: "ends a stream",
			has: func(c *Config) bool { return c.EndStream != nil }, do: a.endStream},
		{method: "GET", path: "/api/tenants", role: Viewer, group: tunnels, query: &TenantQuery{}, answer: List[Tenant]{},
			summary: "the tenants by name, with what they have and may have, in pages", has: func(c *Config) bool { return c.Tenants != nil }, do: a.tenantList},
	}
}

func (a *api) backendRoutes() []*route {
	return []*route{
		{method: "GET", path: "/api/backends", role: Viewer, group: backends, answer: List[Backend]{}, summary: "the backends with their circuits and SSH connections", do: a.backendList},
		{method: "GET", path: "/api/backends/{name}", role: Viewer, group: backends, answer: Backend{}, summary: "one backend", do: a.backend},
		{method: "PUT", path: "/api/backends/{name}/breaker", role: Operator, group: backends, changes: true, body: &BreakerRequest{}, word: "mode", answer: Done{},
			summary: "overrules a backend's circuit, or gives it back to itself", do: a.setBreaker},
	}
}

func (a *api) accessRoutes() []*route {
	return []*route{
		{method: "GET", path: "/api/revocations", role: Viewer, group: access, answer: List[Revocation]{}, summary: "the revocations in force",
			has: func(c *Config) bool { return c.Revocations != nil }, do: a.revocationList},
		{method: "POST", path: "/api/revocations", role: Operator, group: access, changes: true, closes: true, body: &RevocationRequest{}, status: http.StatusCreated,
			answer: Revocation{}, summary: "revokes tokens by id, subject or tenant, and ends their tunnels within 5 seconds",
			has: func(c *Config) bool { return c.Revoke != nil }, do: a.revoke},
		{method: "DELETE", path: "/api/revocations/{id}", role: Operator, group: access, changes: true, status: http.StatusNoContent, summary: "takes a revocation back",
			has: func(c *Config) bool { return c.Unrevoke != nil }, do: a.unrevoke},
		{method: "POST", path: "/api/policy/test", role: Viewer, group: access, body: &PolicyQuestion{}, answer: Decision{},
			summary: "whether a tenant may use a route, and which rule decides; changes nothing", do: a.testPolicy},
	}
}

func (a *api) processRoutes() []*route {
	return []*route{
		{method: "POST", path: "/api/reload", role: Operator, group: process, changes: true, answer: ReloadResult{}, codes: []errs.Code{errs.ConfigInvalid, errs.ConfigUnreadable},
			summary: "reads the configuration and its files anew, and says what changed", has: func(c *Config) bool { return c.Reload != nil }, do: a.reload},
		{method: "POST", path: "/api/drain", role: Operator, group: process, changes: true, closes: true, status: http.StatusAccepted, answer: Done{},
			summary: "tells the sidecars to move, lets streams finish for `shutdown.drain`, then stops", do: a.drain},
		{method: "GET", path: "/api/drain", role: Viewer, group: process, answer: DrainView{}, summary: "how far a drain is", do: a.drainProgress},
		{method: "GET", path: "/api/log-level", role: Viewer, group: process, answer: LogLevel{}, summary: "how much is logged",
			has: func(c *Config) bool { return c.Level != nil }, do: a.level},
		{method: "PUT", path: "/api/log-level", role: Operator, group: process, changes: true, body: &LogLevel{}, word: "level", answer: Done{},
			summary: "changes how much is logged, until the next restart or reload", do: a.setLevel},
	}
}

// profileRoutes are Go's own; they are many megabytes and cost time, so that they are not for viewers.
func profileRoutes() []*route {
	return []*route{
		{method: "GET", path: "/debug/pprof/{$}", role: Operator, group: process, media: "text/html; charset=utf-8", summary: "the Go profiles there are", raw: pprof.Index},
		{method: "GET", path: "/debug/pprof/{profile}", role: Operator, group: process, query: &ProfileQuery{}, media: binary,
			summary: "a Go profile: allocs, block, goroutine, heap, mutex, threadcreate", raw: pprof.Index},
		{method: "GET", path: "/debug/pprof/profile", role: Operator, group: process, query: &ProfileQuery{}, media: binary, summary: "a CPU profile", raw: pprof.Profile},
		{method: "GET", path: "/debug/pprof/trace", role: Operator, group: process, query: &ProfileQuery{}, media: binary, summary: "an execution trace", raw: pprof.Trace},
		{method: "GET", path: "/debug/pprof/cmdline", role: Operator, group: process, media: plainText, summary: "the command line", raw: pprof.Cmdline},
		{method: "GET", path: "/debug/pprof/symbol", role: Operator, group: process, media: plainText, summary: "names of functions, for go tool pprof", free: true, raw: pprof.Symbol},
		{method: "POST", path: "/debug/pprof/symbol", role: Operator, group: process, media: plainText, summary: "names of functions, for go tool pprof; changes nothing",
			free: true, raw: pprof.Symbol},
	}
}
