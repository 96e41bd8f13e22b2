package config

import "time"

// Backend is an SSH server.
type Backend struct {
	// Address is the host:port of its SSH server.
	Address string `koanf:"address" allowed:"host:port" doc:"address of its SSH server" example:"bastion.internal:22"`
	// User is who the gateway logs in as; needed by routes in mode forward.
	User string `koanf:"user" allowed:"required by routes in mode forward" doc:"who the gateway logs in as" example:"fairlead"`
	// KeyFile is the gateway's private key in OpenSSH format; needed by routes in mode forward.
	KeyFile string `koanf:"key_file" allowed:"this or identity.ca_key_file is required by routes in mode forward" doc:"the gateway's private key, in OpenSSH or PEM format; read anew for each login" example:"/etc/fairlead/id_ed25519"`
	// KeyFiles are tried after KeyFile.
	KeyFiles []string `koanf:"key_files" allowed:"at most 4, with key_file" doc:"private keys that are tried after key_file, in this order; for a change of keys" example:"/etc/fairlead/id_old"`
	// CertificateFile is an OpenSSH certificate for the key; empty: the key alone.
	CertificateFile string `koanf:"certificate_file" allowed:"only with key_file" doc:"OpenSSH certificate for the key; empty: the key alone" example:"/etc/fairlead/id_ed25519-cert.pub"`
	// HostKeys is how the backend proves who it is.
	HostKeys HostKeys `koanf:"host_keys" doc:"how the backend proves who it is; required by routes in mode forward"`
	// DialTimeout bounds the connection's set-up, the SSH handshake included.
	DialTimeout time.Duration `koanf:"dial_timeout" min:"100ms" max:"5m" doc:"bound of setting up a connection, the SSH handshake included" example:"5s"`
	// Identity makes the gateway log in with certificates of its own making instead of a key.
	Identity SSHIdentity `koanf:"identity" doc:"log in with short-lived certificates that say who came, instead of with key_file; see docs/keyless.md"`
	// Dialing is how many connections are made at once.
	Dialing Dialing `koanf:"dialing" doc:"how many connections are made at once, and who waits"`
	// Health is how the backend is looked after while nobody uses it.
	Health Health `koanf:"health" doc:"whether the backend is looked after while nobody uses it"`
	// Warm is how many SSH connections are kept ready for a tenant that has used the backend lately.
	Warm int `koanf:"warm" min:"0" max:"16" doc:"SSH connections kept ready for each tenant that has used the backend lately; for routes in mode forward" example:"1"`
}

// SSHIdentity makes the gateway an SSH certificate authority for a backend.
type SSHIdentity struct {
	// CAKeyFile is the authority's private key; empty: no certificates are made.
	CAKeyFile string `koanf:"ca_key_file" allowed:"instead of key_file" doc:"private key of the authority that the backend trusts (TrustedUserCAKeys), in OpenSSH or PEM format; empty: log in with key_file" example:"/etc/fairlead/user_ca"`
	// TTL is how long a certificate is valid.
	TTL time.Duration `koanf:"ttl" min:"10s" max:"24h" doc:"how long a certificate is valid; it is needed at the login only" example:"1m"`
	// Principals are templates.
	Principals []string `koanf:"principals" allowed:"text with {tenant}, {tenant.0}, {subject}, {pod}, {issuer}, {gateway} or {backend}" doc:"principals of the certificate, as templates" example:"{tenant.0},fairlead"`
	// KeyID is a template; it is what the backend's log shows.
	KeyID string `koanf:"key_id" allowed:"text with {tenant}, {tenant.0}, {subject}, {pod}, {issuer}, {gateway} or {backend}" doc:"key id of the certificate, as a template: what the backend's own log shows; an empty value becomes -" example:"{tenant}:{pod}"`
	// ForceCommand runs instead of a shell or command that is asked for.
	ForceCommand string `koanf:"force_command" doc:"what runs instead of a shell or command that is asked for with the certificate, which is for forwarding; none: nothing is forced" example:"none"`
	// SourceAddresses are where the backend accepts the certificate from.
	SourceAddresses []string `koanf:"source_addresses" allowed:"addresses or networks" doc:"addresses and networks of gateways, from which alone the backend accepts the certificate; empty: any" example:"10.1.0.0/16"`
	// Extensions are further ones.
	Extensions []string `koanf:"extensions" allowed:"name@domain" doc:"further extensions of the certificate, without values" example:"team@example.com"`
}

// Dialing is how many connections to a backend are made at once.
type Dialing struct {
	// Concurrent bounds the dials under way.
	Concurrent int `koanf:"concurrent" min:"1" doc:"dials under way at once, and an eighth more for tenants that have none; tenants that wait take turns" example:"32"`
	// Handshakes bounds the SSH handshakes of the gateway under way.
	Handshakes int `koanf:"handshakes" min:"1" doc:"SSH handshakes of the gateway under way at once, and an eighth more for tenants that have none; OpenSSH's server begins to drop at 10 (MaxStartups)" example:"4"`
	// PerSecond paces the dials; 0: not at all.
	PerSecond int `koanf:"per_second" min:"0" doc:"dials begun in a second; 0: no limit" example:"100"`
	// HandshakesPerSecond paces the gateway's SSH handshakes.
	HandshakesPerSecond int `koanf:"handshakes_per_second" min:"1" doc:"SSH handshakes of the gateway begun in a second" example:"10"`
	// Burst is how many may begin at once after a pause.
	Burst int `koanf:"burst" min:"1" doc:"how many paced dials or handshakes may begin at once after a pause" example:"20"`
	// Queue bounds the opens that wait.
	Queue int `koanf:"queue" min:"1" doc:"opens that may wait for a dial" example:"1000"`
	// QueuePerTenant bounds those of one tenant.
	QueuePerTenant int `koanf:"queue_per_tenant" min:"1" doc:"opens of one tenant that may wait for a dial" example:"512"`
}

// Health is how a backend is looked after while nobody uses it.
type Health struct {
	// Interval is the time between two looks; 0: none.
	Interval time.Duration `koanf:"interval" max:"1h" doc:"time between two looks whether the SSH server answers (its greeting, without a login); 0s: none" example:"30s"`
	// Timeout bounds one look.
	Timeout time.Duration `koanf:"timeout" min:"100ms" max:"1m" doc:"bound of one look" example:"2s"`
}

// SetDefaults sets what a backend that does not say otherwise has.
func (b *Backend) SetDefaults() {
	*b = Backend{DialTimeout: 10 * time.Second, HostKeys: HostKeys{Mode: HostKeysStrict},
		Identity: SSHIdentity{TTL: 5 * time.Minute, Principals: []string{"{tenant}"}, KeyID: "fairlead/{gateway}:tenant={tenant}:pod={pod}", ForceCommand: "/bin/false"},
		Dialing:  Dialing{Concurrent: 64, Handshakes: 8, HandshakesPerSecond: 50, Burst: 10, Queue: 4096, QueuePerTenant: 1024},
		Health:   Health{Timeout: 5 * time.Second}}
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
	// RevokedFile lists public keys that are never accepted.
	RevokedFile string `koanf:"revoked_file" doc:"file of public keys, of hosts or authorities, that are never accepted; besides @revoked lines of the known_hosts file" example:"/etc/fairlead/revoked_hosts"`
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
	// Compression is whether the streams' bytes are compressed in the tunnel: auto, on or off.
	Compression string `koanf:"compression" enum:"auto|on|off" doc:"whether the bytes are compressed in the tunnel, where they shrink and the path is slow; auto: as the sidecar's listener wishes, and if that is auto too, with mode forward only, since SSH is encrypted" example:"off"`
}

// SetDefaults sets what a route that does not say otherwise has.
func (r *Route) SetDefaults() { *r = Route{Mode: ModePassthrough, Compression: "auto"} }
