package config

import (
	"time"

	"fairlead/shared/config"
)

// Breaker is the circuit of each backend.
type Breaker struct {
	// Failures is how many failed connections in a row open the circuit.
	Failures int `koanf:"failures" min:"1" doc:"failed connections in a row that open the circuit" example:"3"`
	// RetryAfter is how long it stays open before a single probe.
	RetryAfter time.Duration `koanf:"retry_after" min:"1s" doc:"how long the circuit stays open before a single probe" example:"30s"`
}

// SSHPool is the SSH connections of routes in mode forward, per tenant and backend.
type SSHPool struct {
	// ChannelsPerConnection is how many streams share one SSH connection.
	ChannelsPerConnection int `koanf:"channels_per_connection" min:"1" doc:"streams that share one SSH connection" example:"20"`
	// Connections is how many SSH connections one tenant may have to one backend.
	Connections int `koanf:"connections" min:"1" doc:"SSH connections that one tenant may have to one backend" example:"5"`
	// ConnectionsPerTenant is how many one tenant may have to a backend with identity, whose certificates may tell pods apart.
	ConnectionsPerTenant int `koanf:"connections_per_tenant" min:"1" doc:"with identity: SSH connections that one tenant may have to one backend in all, of however many pods" example:"64"`
	// Keepalive is the time between keepalive requests; 0 sends none.
	Keepalive time.Duration `koanf:"keepalive" doc:"time between keepalive requests; 0s: none" example:"30s"`
	// Idle is how long a connection without streams stays open; 0 closes it at once.
	Idle time.Duration `koanf:"idle" doc:"how long a connection without streams stays open; 0s: it is closed at once" example:"1m"`
	// MaxAge is the age after which a connection takes no new streams; 0: any age.
	MaxAge time.Duration `koanf:"max_age" doc:"age after which, or up to a fifth earlier, a connection takes no new streams; those it carries go on. 0s: no limit" example:"8h"`
	// WarmFor is how long after its last stream a tenant's connections are kept ready.
	WarmFor time.Duration `koanf:"warm_for" min:"1s" max:"24h" doc:"with backends.*.warm: how long after its last stream a tenant's connections are kept ready" example:"1h"`
}

// Tunnel is the limits of one tunnel.
type Tunnel struct {
	// ResumeTTL is how long a tunnel without a WebSocket can be resumed; 0: not at all.
	ResumeTTL time.Duration `koanf:"resume_ttl" max:"1h" doc:"how long a tunnel that lost its WebSocket can be resumed; 0s: not at all" example:"2m"`
	// Link is what the sidecar has too.
	config.Link `koanf:",squash"`
}

// Admin is the admin API.
type Admin struct {
	// Listen is host:port; empty switches the admin API off.
	Listen string `koanf:"listen" allowed:"host:port" doc:"address of the admin API; empty: none" example:"127.0.0.1:9912"`
	// TokenFile holds the token that callers must send; empty, on loopback only: none.
	TokenFile string `koanf:"token_file" allowed:"this or tokens is required unless listen is on loopback" doc:"file that holds the token of operators; empty, and without tokens: none is asked for" example:"/etc/fairlead/admin-token"`
	// Tokens are those of callers with a name and a role.
	Tokens []AdminToken `koanf:"tokens" doc:"tokens of callers with a name, which the audit log shows, and a role"`
	// RequestsPerMinute bounds what one caller may ask.
	RequestsPerMinute int `koanf:"requests_per_minute" min:"1" doc:"requests that one caller, and one client address, may make in a minute; a page that is open makes up to 150" example:"1200"`
	// FailuresPerMinute bounds the wrong tokens of one client address.
	FailuresPerMinute int `koanf:"failures_per_minute" min:"1" doc:"wrong tokens that one client address may send in a minute; beyond, it is refused without a look at its token" example:"10"`
}

// AdminToken is a caller of the admin API.
type AdminToken struct {
	// Name is how logs call the caller.
	Name string `koanf:"name" allowed:"required; each once" doc:"how logs call the caller" example:"alice"`
	// Role is viewer or operator.
	Role string `koanf:"role" enum:"viewer|operator" doc:"viewer: may look; operator: may also change, drain, revoke and profile" example:"operator"`
	// File holds the token.
	File string `koanf:"file" allowed:"required" doc:"file that holds the token, 16 bytes or more; read again when it changes" example:"/etc/fairlead/admin/alice"`
}

// Roles of callers of the admin API.
const (
	RoleViewer   = "viewer"
	RoleOperator = "operator"
)

// SetDefaults sets what a token that does not say otherwise has.
func (t *AdminToken) SetDefaults() { *t = AdminToken{Role: RoleViewer} }

// Shutdown is how the gateway stops.
type Shutdown struct {
	// Drain is how long streams in flight are waited for; 0 closes them at once.
	Drain time.Duration `koanf:"drain" doc:"how long streams in flight are waited for; 0s: they are closed at once" example:"2m"`
}
