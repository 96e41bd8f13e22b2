// Package config is the gateway's configuration: the struct, its defaults and its validation.
package config

import (
	"time"

	"fairlead/shared/config"
)

// Config is everything that can be configured about a gateway. Default gives usable values for all but the certificate,
// issuers, backends, routes and policy.
type Config struct {
	// Listen is the host:port that sidecars and other clients connect to; port 0 takes any.
	Listen string `koanf:"listen" allowed:"host:port" doc:"address that sidecars and other clients connect to" example:"0.0.0.0:443"`
	// TrustedProxies are the networks (CIDR) whose X-Forwarded-For counts; empty: nobody's.
	TrustedProxies []string `koanf:"trusted_proxies" allowed:"CIDRs" doc:"networks whose X-Forwarded-For names the client; empty: the header never counts" example:"10.0.0.0/8,fd00::/8"`
	// TLS is the certificate.
	TLS TLS `koanf:"tls" doc:"TLS of the public address. Either a certificate, or disabled behind an ingress that terminates TLS."`
	// Auth is whose tokens are accepted.
	Auth Auth `koanf:"auth" doc:"Whose tokens are accepted, and what their claims mean."`
	// Backends are the SSH servers by name.
	Backends map[string]Backend `koanf:"backends" doc:"The SSH servers that routes lead to, by name."`
	// Routes are what clients can ask for, by name.
	Routes map[string]Route `koanf:"routes" doc:"What clients can ask for, by name. Nothing else can be reached."`
	// Policy is who may use which routes; what no rule allows is refused.
	Policy []Rule `koanf:"policy" doc:"Who may use which routes. What no rule allows is refused."`
	// Tiers are sets of limits by name; there is always one named "default".
	Tiers map[string]Tier `koanf:"tiers" doc:"Sets of limits by name. A tenant whose token names no known tier has the tier default, which always exists."`
	// Breaker is the circuit of each backend.
	Breaker Breaker `koanf:"breaker" doc:"The circuit of each backend: one that fails repeatedly is left alone for a while."`
	// SSHPool is the pool of SSH connections to each backend, per tenant.
	SSHPool SSHPool `koanf:"ssh_pool" doc:"The SSH connections of routes in mode forward, per tenant and backend."`
	// Tunnel is the limits of one tunnel.
	Tunnel Tunnel `koanf:"tunnel" doc:"Limits of one tunnel. The sidecar has most of them too; the smaller value of both counts."`
	// Store is where shared state is kept.
	Store Store `koanf:"store" doc:"Where shared state is kept."`
	// Admin is the admin API.
	Admin Admin `koanf:"admin" doc:"The admin API, health checks, metrics and page."`
	// Shutdown is how the gateway stops.
	Shutdown Shutdown `koanf:"shutdown" doc:"How the gateway stops."`
	// Log is what is logged, and how.
	Log config.Log `koanf:"log" doc:"What is logged, and how."`
}

// TLS is the certificate of the public address.
type TLS struct {
	// CertFile is a PEM file of the certificate and its chain; read again when it changes.
	CertFile string `koanf:"cert_file" allowed:"required unless disabled" doc:"PEM file of the certificate and its chain; read again when it changes" example:"/etc/fairlead/tls.crt"`
	// KeyFile is a PEM file of the certificate's private key; read again when it changes.
	KeyFile string `koanf:"key_file" allowed:"required unless disabled" doc:"PEM file of the certificate's private key; read again when it changes" example:"/etc/fairlead/tls.key"`
	// ClientCAFile is for client certificates; only empty in this version.
	ClientCAFile string `koanf:"client_ca_file" allowed:"only empty in this version" doc:"PEM file of the authorities that may sign client certificates; empty: none are asked for"`
	// Disabled serves without TLS, for an ingress in front that terminates it.
	Disabled bool `koanf:"disabled" allowed:"not together with the files" doc:"serve without TLS; for an ingress in front that terminates it, and for development" example:"true"`
}

// Backend is an SSH server.
type Backend struct {
	// Address is the host:port of its SSH server.
	Address string `koanf:"address" allowed:"host:port" doc:"address of its SSH server" example:"bastion.internal:22"`
	// User is who the gateway logs in as; needed by routes in mode forward.
	User string `koanf:"user" allowed:"required by routes in mode forward" doc:"who the gateway logs in as" example:"fairlead"`
	// KeyFile is the gateway's private key in OpenSSH format; needed by routes in mode forward.
	KeyFile string `koanf:"key_file" allowed:"required by routes in mode forward" doc:"the gateway's private key, in OpenSSH or PEM format" example:"/etc/fairlead/id_ed25519"`
	// CertificateFile is an OpenSSH certificate for the key; empty: the key alone.
	CertificateFile string `koanf:"certificate_file" allowed:"only with key_file" doc:"OpenSSH certificate for the key; empty: the key alone" example:"/etc/fairlead/id_ed25519-cert.pub"`
	// HostKeys is how the backend proves who it is.
	HostKeys HostKeys `koanf:"host_keys" doc:"how the backend proves who it is; required by routes in mode forward"`
	// DialTimeout bounds the connection's set-up, the SSH handshake included.
	DialTimeout time.Duration `koanf:"dial_timeout" min:"100ms" max:"5m" doc:"bound of setting up a connection, the SSH handshake included" example:"5s"`
}

// SetDefaults sets what a backend that does not say otherwise has.
func (b *Backend) SetDefaults() {
	*b = Backend{DialTimeout: 10 * time.Second, HostKeys: HostKeys{Mode: HostKeysStrict}}
}

// Modes of host key checking.
const (
	HostKeysStrict   = "strict"    // only keys in the known_hosts file
	HostKeysFirstUse = "first-use" // also the first key of a host that the file does not know
)

// HostKeys is how a backend proves who it is.
type HostKeys struct {
	// KnownHostsFile is in OpenSSH's known_hosts format; strict mode needs it, with first-use it may be empty.
	KnownHostsFile string `koanf:"known_hosts_file" allowed:"required by routes in mode forward if the mode is strict" doc:"host keys and authorities in OpenSSH's known_hosts format" example:"/etc/fairlead/known_hosts"`
	// Mode is strict or first-use.
	Mode string `koanf:"mode" enum:"strict|first-use" doc:"strict: only keys in the file; first-use: also the first key seen of a host that the file does not know" example:"first-use"`
}

// Modes of a route.
const (
	ModePassthrough = "passthrough" // bytes to the backend's port
	ModeForward     = "forward"     // a channel on an SSH connection of the gateway, to a target behind the backend
)

// Route is what a client can ask for.
type Route struct {
	// Backend is the name of the backend that the route leads to.
	Backend string `koanf:"backend" allowed:"the name of a backend" doc:"backend that the route leads to" example:"bastion"`
	// Mode is passthrough or forward.
	Mode string `koanf:"mode" enum:"passthrough|forward" doc:"passthrough: bytes to the backend's port, so that the application's SSH is end to end; forward: through an SSH connection of the gateway to a target behind the backend" example:"forward"`
	// Target is the host:port that the backend connects to; with mode forward only.
	Target string `koanf:"target" allowed:"host:port; required with mode forward and only there" doc:"what the backend connects to" example:"orders-db:5432"`
}

// SetDefaults sets what a route that does not say otherwise has.
func (r *Route) SetDefaults() { *r = Route{Mode: ModePassthrough} }

// Rule allows some tenants some routes.
type Rule struct {
	// Tenants are globs; see MatchTenant.
	Tenants []string `koanf:"tenants" allowed:"at least one" doc:"tenants as globs: *, ? and [a-z] match inside one part between slashes" example:"payments/*,dev"`
	// Routes are names of routes, or "*" for all.
	Routes []string `koanf:"routes" allowed:"at least one name of a route, or * for all" doc:"routes that these tenants may use" example:"git,orders-db"`
}

// Tier is a set of limits. 0 is no limit.
type Tier struct {
	// OpensPerMinute is how many streams a tenant may open in a minute; 0: no limit.
	OpensPerMinute int `koanf:"opens_per_minute" doc:"streams that a tenant may open in a minute; 0: no limit" example:"600"`
	// Burst is how many of them at once; 0: no limit of its own.
	Burst int `koanf:"burst" doc:"how many of them at once; 0: no limit but opens_per_minute" example:"200"`
	// Tunnels is how many tunnels a tenant may have; 0: no limit.
	Tunnels int `koanf:"tunnels" doc:"tunnels that a tenant may have; 0: no limit" example:"10"`
	// Streams is how many streams a tenant may have; 0: no limit.
	Streams int `koanf:"streams" doc:"streams that a tenant may have; 0: no limit" example:"1000"`
	// Bandwidth is in bytes per second; only 0, no limit, in this version.
	Bandwidth int `koanf:"bandwidth" allowed:"only 0 in this version" doc:"bytes per second in each direction; 0: no limit" example:"0"`
}

// SetDefaults sets what a tier that does not say otherwise has.
func (t *Tier) SetDefaults() {
	*t = Tier{OpensPerMinute: 100, Burst: 100, Tunnels: 3, Streams: 100}
}

// DefaultTier is the name of the tier that always exists.
const DefaultTier = "default"

// Default is the configuration before anything is set.
func Default() Config {
	var tier Tier
	tier.SetDefaults()
	return Config{
		Listen:   ":8443",
		Tiers:    map[string]Tier{DefaultTier: tier},
		Breaker:  Breaker{Failures: 5, RetryAfter: time.Minute},
		SSHPool:  SSHPool{ChannelsPerConnection: 10, Connections: 3, Keepalive: time.Minute, Idle: 5 * time.Minute, MaxAge: time.Hour},
		Tunnel:   Tunnel{ResumeTTL: time.Minute, Link: config.DefaultLink()},
		Store:    Store{Kind: StoreMemory},
		Admin:    Admin{Listen: "127.0.0.1:9902"},
		Shutdown: Shutdown{Drain: 30 * time.Second},
		Log:      config.DefaultLog(),
	}
}
