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
	// Keepalive is the time between keepalive requests; 0 sends none.
	Keepalive time.Duration `koanf:"keepalive" doc:"time between keepalive requests; 0s: none" example:"30s"`
	// Idle is how long a connection without streams stays open; 0 closes it at once.
	Idle time.Duration `koanf:"idle" doc:"how long a connection without streams stays open; 0s: it is closed at once" example:"1m"`
	// MaxAge is the age after which a connection takes no new streams; 0: any age.
	MaxAge time.Duration `koanf:"max_age" doc:"age after which a connection takes no new streams; 0s: no limit" example:"8h"`
}

// Tunnel is the limits of one tunnel.
type Tunnel struct {
	// ResumeTTL is how long a tunnel without a WebSocket can be resumed; 0: not at all.
	ResumeTTL time.Duration `koanf:"resume_ttl" max:"1h" doc:"how long a tunnel that lost its WebSocket can be resumed; 0s: not at all" example:"2m"`
	// Link is what the sidecar has too.
	config.Link `koanf:",squash"`
}

// StoreMemory keeps state in the process.
const StoreMemory = "memory"

// Store is where shared state is kept.
type Store struct {
	// Kind is "memory", the only one in this version.
	Kind string `koanf:"kind" allowed:"only memory in this version" doc:"memory: in the process, for a single gateway" example:"memory"`
}

// Admin is the admin API.
type Admin struct {
	// Listen is host:port; empty switches the admin API off.
	Listen string `koanf:"listen" allowed:"host:port" doc:"address of the admin API; empty: none" example:"127.0.0.1:9912"`
	// TokenFile holds the token that callers must send; empty, on loopback only: none.
	TokenFile string `koanf:"token_file" allowed:"required unless listen is on loopback" doc:"file that holds the token that callers must send; empty: none is asked for" example:"/etc/fairlead/admin-token"`
}

// Shutdown is how the gateway stops.
type Shutdown struct {
	// Drain is how long streams in flight are waited for; 0 closes them at once.
	Drain time.Duration `koanf:"drain" doc:"how long streams in flight are waited for; 0s: they are closed at once" example:"2m"`
}
