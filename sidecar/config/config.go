// Package config is the sidecar's configuration: the struct, its defaults and its validation.
package config

import (
	"time"

	"fairlead/shared/config"
	"fairlead/shared/logging"
)

// Config is everything that can be configured about a sidecar. Default gives usable values for all but
// gateway.endpoints, the token, and listeners.
type Config struct {
	// Profile is a named set of defaults for a kind of network; empty is the only one in this version.
	Profile string `koanf:"profile" allowed:"only empty in this version" doc:"named set of defaults for a kind of network; empty: the defaults of this page"`
	// Gateway is where tunnels go and as whom.
	Gateway Gateway `koanf:"gateway" doc:"The gateway: where tunnels go, and as whom."`
	// Tunnels is the size of the pool.
	Tunnels Tunnels `koanf:"tunnels" doc:"The pool of tunnels. Streams are spread over them."`
	// Reconnect is what happens when a tunnel's WebSocket is lost.
	Reconnect Reconnect `koanf:"reconnect" doc:"What happens when a WebSocket is lost: attempts with exponential backoff and full jitter."`
	// Queue is where connections wait while no tunnel is up.
	Queue Queue `koanf:"queue" doc:"Where connections wait while no tunnel is up."`
	// Listeners are the local addresses that applications connect to; without any, only the commands other than run are of use.
	Listeners []Listener `koanf:"listeners" doc:"The local addresses that applications connect to, and the route that each leads to."`
	// Tunnel is the limits of one tunnel.
	Tunnel config.Link `koanf:"tunnel" doc:"Limits of one tunnel. The gateway has the same; the smaller value of both counts."`
	// Admin is the admin API.
	Admin Admin `koanf:"admin" doc:"The admin API, health checks, metrics and page. It asks for no token: keep it on loopback."`
	// Shutdown is how the sidecar stops.
	Shutdown Shutdown `koanf:"shutdown" doc:"How the sidecar stops."`
	// Log is what is logged, and how.
	Log config.Log `koanf:"log" doc:"What is logged, and how."`
}

// Gateway is where tunnels go and as whom.
type Gateway struct {
	// Endpoints are the gateway's URLs, tried in order; at least one.
	Endpoints []string `koanf:"endpoints" secret:"url" allowed:"at least one URL that begins with wss://, or ws:// with allow_plaintext" doc:"URLs of the gateway, tried in order" example:"wss://gateway.example/,wss://standby.example/"`
	// AllowPlaintext permits ws:// endpoints, over which the token and everything else travels unencrypted.
	AllowPlaintext bool `koanf:"allow_plaintext" doc:"permit ws:// endpoints, over which the token and all bytes travel unencrypted; for development" example:"true"`
	// CAFile is a PEM file of the authorities that may sign the gateway's certificate; empty: the system's.
	CAFile string `koanf:"ca_file" doc:"PEM file of the authorities that may sign the gateway's certificate; empty: those of the system" example:"/etc/fairlead/ca.pem"`
	// ClientCertFile is a PEM file of the certificate that the sidecar shows the gateway; empty: none.
	ClientCertFile string `koanf:"client_cert_file" allowed:"together with client_key_file" doc:"PEM file of the certificate that is shown to the gateway, read again for each connection; empty: none" example:"/etc/fairlead/client.crt"`
	// ClientKeyFile is a PEM file of its private key.
	ClientKeyFile string `koanf:"client_key_file" allowed:"together with client_cert_file" doc:"PEM file of the client certificate's private key, read again for each connection" example:"/etc/fairlead/client.key"`
	// TokenFile holds the token; it is read again for each attempt and when it changes. Empty: Token counts.
	TokenFile string `koanf:"token_file" allowed:"not together with token" doc:"file that holds the token; read again for each attempt and when it changes; empty: see token" example:"/var/run/secrets/fairlead/token"`
	// Token is the token itself; empty: TokenFile counts.
	Token logging.Secret `koanf:"token" allowed:"not together with token_file" doc:"the token itself; a file is better, since a file can be renewed; empty: see token_file" example:"eyJhbGciOi..."`
	// Proxy is the egress proxy's URL; empty: HTTPS_PROXY and NO_PROXY of the environment.
	Proxy string `koanf:"proxy" secret:"url" allowed:"a URL that begins with http:// or https://" doc:"egress proxy, with name and password if it wants them; empty: HTTPS_PROXY and NO_PROXY of the environment" example:"http://proxy.internal:3128"`
	// ConnectTimeout bounds each attempt, from the name's resolution to the end of the upgrade.
	ConnectTimeout time.Duration `koanf:"connect_timeout" min:"100ms" max:"5m" doc:"bound of one attempt to connect, from resolving the name to the end of the upgrade" example:"20s"`
}

// Tunnels is the size of the pool.
type Tunnels struct {
	// Min is how many tunnels are kept open, even when idle.
	Min int `koanf:"min" min:"1" max:"16" doc:"tunnels that are kept open, even when idle" example:"2"`
	// Max is how many tunnels load may open; at least Min.
	Max int `koanf:"max" min:"1" max:"16" allowed:"at least min" doc:"tunnels that load may open; the tenant's tier at the gateway limits them too" example:"8"`
}

// Reconnect is what happens when a tunnel's WebSocket is lost.
type Reconnect struct {
	// Base is the first delay's upper bound; it doubles with each attempt.
	Base time.Duration `koanf:"base" min:"1ms" max:"1h" doc:"upper bound of the first delay; it doubles with each attempt" example:"500ms"`
	// Cap is the largest upper bound; at least Base.
	Cap time.Duration `koanf:"cap" min:"1ms" max:"1h" allowed:"at least base" doc:"largest upper bound of a delay" example:"1m"`
	// MaxAttempts is how many failed attempts in a row end in the state failed; 0 never gives up.
	MaxAttempts int `koanf:"max_attempts" doc:"failed attempts in a row after which the sidecar gives up; 0: never" example:"0"`
	// Enabled is whether lost tunnels reconnect at all; false is for debugging.
	Enabled bool `koanf:"enabled" doc:"whether lost tunnels reconnect; false is for debugging" example:"false"`
}

// Queue is where connections wait while no tunnel is up.
type Queue struct {
	// Size is how many connections may wait; one more is refused.
	Size int `koanf:"size" min:"1" max:"100000" doc:"connections that may wait; one more is refused" example:"500"`
	// Wait is how long each may wait; 0 does not wait at all.
	Wait time.Duration `koanf:"wait" doc:"how long a connection may wait; 0s: not at all" example:"1m"`
}

// Listener is a local address that applications connect to.
type Listener struct {
	// Name tells the listener apart in logs, metrics and the page; unique.
	Name string `koanf:"name" allowed:"a unique name" doc:"name in logs, metrics and the page" example:"git"`
	// Listen is host:port, or unix: and an absolute path; unique.
	Listen string `koanf:"listen" allowed:"a unique host:port or unix:/absolute/path" doc:"address that applications connect to" example:"127.0.0.1:2222"`
	// Route is the name that the gateway resolves.
	Route string `koanf:"route" allowed:"a name" doc:"route to ask the gateway for" example:"git"`
	// Priority orders the queue and the bytes on a tunnel: high, normal or low.
	Priority string `koanf:"priority" enum:"high|normal|low" doc:"who goes first in the queue and on a tunnel: high for interactive use, low for background work" example:"high"`
	// Delivery is how bytes are delivered; "stream" is the only way in this version.
	Delivery string `koanf:"delivery" allowed:"only stream in this version" doc:"how bytes are delivered; stream: as they come" example:"stream"`
}

// SetDefaults sets what a listener that does not say otherwise has.
func (l *Listener) SetDefaults() { *l = Listener{Priority: "normal", Delivery: DeliveryStream} }

// DeliveryStream delivers bytes as they come.
const DeliveryStream = "stream"

// Admin is the admin API.
type Admin struct {
	// Listen is host:port; empty switches the admin API off.
	Listen string `koanf:"listen" allowed:"host:port" doc:"address of the admin API; empty: none" example:"127.0.0.1:9911"`
}

// Shutdown is how the sidecar stops.
type Shutdown struct {
	// Drain is how long open connections are served after the signal to stop; 0 closes them at once.
	Drain time.Duration `koanf:"drain" doc:"how long open connections are served after the signal to stop; 0s: they are closed at once" example:"25s"`
}

// Default is the configuration before anything is set.
func Default() Config {
	return Config{
		Gateway:   Gateway{ConnectTimeout: 10 * time.Second},
		Tunnels:   Tunnels{Min: 1, Max: 4},
		Reconnect: Reconnect{Base: 200 * time.Millisecond, Cap: 30 * time.Second, MaxAttempts: 10, Enabled: true},
		Queue:     Queue{Size: 100, Wait: 30 * time.Second},
		Tunnel:    config.DefaultLink(),
		Admin:     Admin{Listen: "127.0.0.1:9901"},
		Shutdown:  Shutdown{Drain: 10 * time.Second},
		Log:       config.DefaultLog(),
	}
}
