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
	// Profile is a named set of defaults for a kind of network; empty: none.
	Profile string `koanf:"profile" enum:"|stable|unstable|low-bandwidth" doc:"named set of defaults for a kind of network, see Profiles; empty: the defaults of this page" example:"unstable"`
	// StateFile is where what was learned survives a restart; empty: nothing is remembered.
	StateFile string `koanf:"state_file" allowed:"a path in a directory that can be written" doc:"file in which what was learned about endpoints (which one works, affinity cookies, heartbeat) survives a restart; empty: nothing is remembered" example:"/var/lib/fairlead/learned.json"`
	// Gateway is where tunnels go and as whom.
	Gateway Gateway `koanf:"gateway" doc:"The gateway: where tunnels go, and as whom."`
	// Tunnels is the size of the pool.
	Tunnels Tunnels `koanf:"tunnels" doc:"The pool of tunnels. Streams are spread over them."`
	// Reconnect is what happens when a tunnel's WebSocket is lost.
	Reconnect Reconnect `koanf:"reconnect" doc:"What happens when a WebSocket is lost: attempts with exponential backoff and full jitter."`
	// Queue is where connections wait while no tunnel is up.
	Queue Queue `koanf:"queue" doc:"Where connections wait while no tunnel is up."`
	// Spool is where the bytes of listeners with delivery: spool are kept until they are delivered.
	Spool Spool `koanf:"spool" doc:"Where the bytes of listeners with \"delivery: spool\" are kept until they are delivered."`
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
	// Weights spread new tunnels over the endpoints; empty: the first one that works.
	Weights []string `koanf:"weights" allowed:"a whole number from 0 to 1000 for each endpoint, in their order" doc:"shares of the endpoints in new tunnels, one number for each endpoint; 0: only when no other works; empty: endpoints are used in their order" example:"3,1"`
	// Failback is how long an endpoint that comes before the one in use must have been healthy for tunnels to return to it.
	Failback time.Duration `koanf:"failback" min:"1s" max:"24h" doc:"how long a preferred endpoint must have been healthy before tunnels return to it" example:"5m"`
	// Probe is how often endpoints that no tunnel uses are looked at.
	Probe time.Duration `koanf:"probe" min:"1s" max:"1h" doc:"how often endpoints without a tunnel are looked at, when there are several" example:"1m"`
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
	// Exit is whether the process ends, with code 4, when reconnecting was given up.
	Exit bool `koanf:"exit" doc:"whether the process ends, with code 4, once it has given up" example:"true"`
	// Enabled is whether lost tunnels reconnect at all; false is for debugging.
	Enabled bool `koanf:"enabled" doc:"whether lost tunnels reconnect; false is for debugging" example:"false"`
}

// Queue is where connections wait while no tunnel is up.
type Queue struct {
	// Size is how many connections may wait; one more is refused.
	Size int `koanf:"size" min:"1" max:"100000" doc:"connections that may wait; one more is refused" example:"500"`
	// Wait is how long each may wait; 0 does not wait at all.
	Wait time.Duration `koanf:"wait" doc:"how long a connection may wait; 0s: not at all" example:"1m"`
	// Pressure is how full the queue is, in per cent, when listeners of low priority begin to accept slowly.
	Pressure int `koanf:"pressure" min:"1" max:"100" doc:"how full the queue is, in per cent, when back-pressure begins: it is said, and listeners of low priority accept slowly" example:"50"`
	// EarlyBytes is how much of what a waiting connection has sent already is kept, for each connection.
	EarlyBytes config.Bytes `koanf:"early_bytes" max:"1MiB" doc:"how much is read and kept of what a waiting connection sends; the rest waits in the kernel" example:"256KiB"`
	// Release is how many waiting connections are let through a second once a tunnel is up; 0 does not pace.
	Release int `koanf:"release" max:"100000" doc:"waiting connections that are opened a second once a tunnel is up again; 0: all at once" example:"20"`
}

// Spool is where the bytes of listeners with delivery: spool are kept until they are delivered.
type Spool struct {
	// Dir is the directory of the spool; required with a listener that spools.
	Dir string `koanf:"dir" allowed:"an absolute path; required by listeners with delivery: spool" doc:"directory that the bytes are kept in; one sidecar only may use it at a time" example:"/var/lib/fairlead/spool"`
	// Size bounds what the directory holds.
	Size config.Bytes `koanf:"size" min:"1MiB" doc:"bound of what the directory holds" example:"10GiB"`
	// Full is what happens at that bound: refuse or drop-oldest.
	Full string `koanf:"full" enum:"refuse|drop-oldest" doc:"what happens at that bound; refuse: new connections are refused and open ones wait; drop-oldest: the oldest bytes of the lowest priority are dropped, and counted" example:"drop-oldest"`
	// Fsync is when bytes are made durable: always, interval or never.
	Fsync string `koanf:"fsync" enum:"always|interval|never" doc:"when bytes are made durable; always: before they are acknowledged; interval: every interval, and before the end of a connection is acknowledged; never: when the system likes to" example:"interval"`
	// KeyFile holds the key that encrypts the files; empty: they are not encrypted.
	KeyFile string `koanf:"key_file" allowed:"a file of 32 bytes, raw or in base64" doc:"file of the key that encrypts what is kept, with AES-256-GCM; empty: it is not encrypted" example:"/etc/fairlead/spool.key"`
	// OldKeyFiles hold keys that read what was written before the key was changed.
	OldKeyFiles []string `koanf:"old_key_files" doc:"files of keys that were in use before, to read what they encrypted" example:"/etc/fairlead/spool.old.key"`
	// Resume is where the delivery of a connection goes on that was interrupted: offset, line or start.
	Resume string `koanf:"resume" enum:"offset|line|start" doc:"where an interrupted delivery goes on; offset: a little before the first byte that is not known to have arrived; line: at the beginning of that line; start: with the whole connection again" example:"line"`
	// Overlap is how much is sent again before that place.
	Overlap config.Bytes `koanf:"overlap" max:"1GiB" doc:"how much is sent again when an interrupted delivery goes on, since what has left the gateway need not have arrived; a quarter of size at most" example:"16MiB"`
	// Receiving bounds the connections that are received at once.
	Receiving int `koanf:"receiving" min:"1" max:"100000" doc:"connections that are received at once; one more is refused" example:"100"`
	// Connections bounds the connections that are kept.
	Connections int `koanf:"connections" min:"1" max:"1000000" doc:"connections that are kept; then the spool is full" example:"100000"`
	// Concurrency is how many connections are delivered at once.
	Concurrency int `koanf:"concurrency" min:"1" max:"64" doc:"connections that are delivered at once" example:"16"`
	// OpensPerMinute bounds the streams that deliveries begin; 0: it does not.
	OpensPerMinute int `koanf:"opens_per_minute" max:"60000" doc:"streams that deliveries begin in a minute, so that others are left their share of the tenant's limit; 0: no limit" example:"600"`
	// Interval is that of fsync: interval.
	Interval time.Duration `koanf:"interval" min:"10ms" max:"1m" doc:"of fsync: interval, and of writing down how far deliveries are" example:"200ms"`
	// EndWait is how long a backend that has everything may take to end its side.
	EndWait time.Duration `koanf:"end_wait" min:"1s" max:"1h" doc:"how long a backend that has everything may take to end its side; then the delivery is tried again" example:"5m"`
	// Stall is how long a delivery may stand still before others have its turn.
	Stall time.Duration `koanf:"stall" min:"100ms" max:"1m" doc:"how long a delivery may stand still before others have its turn" example:"10s"`
	// Retry is how long a delivery waits that failed.
	Retry SpoolRetry `koanf:"retry" doc:"how long a delivery waits that failed"`
}

// SpoolRetry is how long a delivery waits that failed.
type SpoolRetry struct {
	// Base is the bound of the first delay; it doubles with each failure.
	Base time.Duration `koanf:"base" min:"1ms" max:"1h" doc:"upper bound of the first delay; it doubles with each failure" example:"5s"`
	// Cap is the largest bound of a delay.
	Cap time.Duration `koanf:"cap" min:"1ms" max:"1h" allowed:"at least base" doc:"largest upper bound of a delay" example:"10m"`
	// Denied is the delay after a refusal that will not pass by itself.
	Denied time.Duration `koanf:"denied" min:"1ms" max:"1h" doc:"delay after a refusal that does not pass by itself, such as of the policy" example:"30m"`
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
	// Delivery is how bytes are delivered: stream or spool.
	Delivery string `koanf:"delivery" enum:"stream|spool" doc:"how bytes are delivered; stream: as they come, both ways; spool: one way, kept on disk until they are delivered, see spool" example:"spool"`
	// Compression is whether a stream's bytes are compressed in the tunnel: auto, on or off.
	Compression string `koanf:"compression" enum:"auto|on|off" doc:"whether the bytes are compressed in the tunnel, where they shrink and the path is slow; auto: unless the route is passthrough, whose SSH is encrypted already" example:"off"`
}

// SetDefaults sets what a listener that does not say otherwise has.
func (l *Listener) SetDefaults() {
	*l = Listener{Priority: "normal", Delivery: DeliveryStream, Compression: "auto"}
}

// How bytes are delivered.
const (
	DeliveryStream = "stream" // as they come
	DeliverySpool  = "spool"  // one way, kept on disk until they are delivered
)

// Admin is the admin API.
type Admin struct {
	// Listen is host:port; empty switches the admin API off.
	Listen string `koanf:"listen" allowed:"host:port" doc:"address of the admin API; empty: none" example:"127.0.0.1:9911"`
}

// Shutdown is how the sidecar stops.
type Shutdown struct {
	// Drain is how long connections are served after the signal to stop; 0 closes them at once.
	Drain time.Duration `koanf:"drain" doc:"how long connections, also new ones, are served after the signal to stop, and the spool is delivered; 0s: they are closed at once" example:"25s"`
	// PodDrain is Drain in a Kubernetes pod, where the application may take as long as its pod is given; 0 is no bound.
	PodDrain time.Duration `koanf:"pod_drain" doc:"the same in a Kubernetes pod, whose own grace period is the bound (terminationGracePeriodSeconds); 0s: drain counts there too" example:"15m"`
	// Quiet is how long there must have been no connection for the application to count as gone.
	Quiet time.Duration `koanf:"quiet" max:"5m" doc:"how long there must have been no connection, after the signal to stop, for the application to count as gone" example:"5s"`
}

// Default is the configuration before anything is set.
func Default() Config {
	return Config{
		Gateway:   Gateway{ConnectTimeout: 10 * time.Second, Failback: time.Minute, Probe: 15 * time.Second},
		Tunnels:   Tunnels{Min: 1, Max: 4},
		Reconnect: Reconnect{Base: 200 * time.Millisecond, Cap: 30 * time.Second, MaxAttempts: 10, Enabled: true},
		Queue:     Queue{Size: 100, Wait: 30 * time.Second, Pressure: 80, EarlyBytes: 64 * config.KiB, Release: 100},
		Spool: Spool{Size: config.GiB, Full: "refuse", Fsync: "always", Resume: "offset", Overlap: 4 * config.MiB, Receiving: 1000, Connections: 10000, Concurrency: 4, OpensPerMinute: 60,
			Interval: time.Second, EndWait: time.Minute, Stall: 2 * time.Second, Retry: SpoolRetry{Base: time.Second, Cap: time.Minute, Denied: 5 * time.Minute}},
		Tunnel:   config.DefaultLink(),
		Admin:    Admin{Listen: "127.0.0.1:9901"},
		Shutdown: Shutdown{Drain: 10 * time.Second, PodDrain: time.Hour, Quiet: 2 * time.Second},
		Log:      config.DefaultLog(),
	}
}
