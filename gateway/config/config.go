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
	// Deflate is whether plain streams may be compressed by permessage-deflate.
	Deflate bool `koanf:"deflate" doc:"whether clients of GET /v1/stream/{route} may ask for permessage-deflate, on routes whose bytes may be compressed" example:"true"`
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
	// Opens is how long an open may take.
	Opens Opens `koanf:"opens" doc:"How long a stream's open may take."`
	// Tiers are sets of limits by name; there is always one named "default".
	Tiers map[string]Tier `koanf:"tiers" doc:"Sets of limits by name. A tenant whose token names no known tier has the tier default, which always exists."`
	// Limits are those of clients before their token is known, of all tenants together, and who is exempt.
	Limits Limits `koanf:"limits" doc:"Limits of clients before their token is known, load shedding, and who is exempt."`
	// Revocations is how tokens, subjects and tenants are locked out.
	Revocations Revocations `koanf:"revocations" doc:"Tokens, subjects and tenants that were locked out by POST /api/revocations."`
	// Breaker is the circuit of each backend.
	Breaker Breaker `koanf:"breaker" doc:"The circuit of each backend: one that fails repeatedly is left alone for a while."`
	// SSHPool is the pool of SSH connections to each backend, per tenant.
	SSHPool SSHPool `koanf:"ssh_pool" doc:"The SSH connections of routes in mode forward, per tenant and backend."`
	// Tunnel is the limits of one tunnel.
	Tunnel Tunnel `koanf:"tunnel" doc:"Limits of one tunnel. The sidecar has most of them too; the smaller value of both counts."`
	// Store is where shared state is kept.
	Store Store `koanf:"store" doc:"Where the state is kept that replicas share: who owns which tunnel, limits, circuits, revocations, host keys of first use."`
	// Peer is how replicas reach each other.
	Peer Peer `koanf:"peer" doc:"How replicas reach each other, with store.kind: redis."`
	// Balance is how tunnels are spread anew.
	Balance Balance `koanf:"balance" doc:"How tunnels are spread anew over replicas, one by one and without cutting a stream."`
	// Audit is the log of who did what.
	Audit Audit `koanf:"audit" doc:"The hash-chained log of who did what."`
	// Metrics bounds what is measured.
	Metrics Metrics `koanf:"metrics" doc:"What is measured."`
	// Reload is how changes of files are noticed.
	Reload Reload `koanf:"reload" doc:"How changed files take effect without a restart, besides SIGHUP and POST /api/reload."`
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
	// ClientCAFile is a PEM file of the authorities that may sign client certificates; empty: none are asked for.
	ClientCAFile string `koanf:"client_ca_file" allowed:"not when disabled" doc:"PEM file of the authorities that may sign client certificates, read again when it changes; empty: none are asked for" example:"/etc/fairlead/clients.crt"`
	// ClientCertificates says whether clients must send one; only with ClientCAFile.
	ClientCertificates string `koanf:"client_certificates" enum:"required|optional" doc:"with client_ca_file: whether every client must send a certificate, or only those whose token is bound to one" example:"optional"`
	// Disabled serves without TLS, for an ingress in front that terminates it.
	Disabled bool `koanf:"disabled" allowed:"not together with the files" doc:"serve without TLS; for an ingress in front that terminates it, and for development" example:"true"`
}

// Whether clients must send a certificate.
const (
	ClientCertificatesRequired = "required"
	ClientCertificatesOptional = "optional"
)

// Rule allows some tenants some routes.
type Rule struct {
	// Tenants are globs; see glob.Pattern.
	Tenants []string `koanf:"tenants" allowed:"at least one" doc:"tenants as globs: *, ? and [a-z] match inside one part between slashes" example:"payments/*,dev"`
	// Routes are names of routes, or "*" for all.
	Routes []string `koanf:"routes" allowed:"at least one name of a route, or * for all" doc:"routes that these tenants may use" example:"git,orders-db"`
}

// Default is the configuration before anything is set.
func Default() Config {
	var tier Tier
	tier.SetDefaults()
	return Config{
		Listen:      ":8443",
		TLS:         TLS{ClientCertificates: ClientCertificatesRequired},
		Opens:       Opens{Timeout: 30 * time.Second, Slow: 5 * time.Second},
		Tiers:       map[string]Tier{DefaultTier: tier},
		Limits:      defaultLimits(),
		Revocations: Revocations{Review: 5 * time.Second},
		Breaker:     Breaker{Failures: 5, RetryAfter: time.Minute},
		SSHPool:     SSHPool{ChannelsPerConnection: 10, Connections: 3, ConnectionsPerTenant: 32, Keepalive: time.Minute, Idle: 5 * time.Minute, MaxAge: time.Hour, WarmFor: 15 * time.Minute},
		Tunnel:      Tunnel{ResumeTTL: time.Minute, Link: config.DefaultLink()},
		Store:       Store{Kind: StoreMemory, Mode: "standalone", Prefix: "fairlead", Timeout: 50 * time.Millisecond},
		Peer:        Peer{Listen: ":8444"},
		Balance:     Balance{Tolerance: 25, PerMinute: 60},
		Audit:       defaultAudit(),
		Metrics:     Metrics{Tenants: 200},
		Reload:      Reload{Watch: 5 * time.Second},
		Admin:       Admin{Listen: "127.0.0.1:9902", RequestsPerMinute: 6000, FailuresPerMinute: 30},
		Shutdown:    Shutdown{Drain: 30 * time.Second},
		Log:         config.DefaultLog(),
	}
}
