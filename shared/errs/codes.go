package errs

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Info is what is known about a code: for people (title, advice) and for each way that a failure is told.
type Info struct {
	Title  string // what happened, in a few words
	Advice string // what to do next; every known code has one
	HTTP   int    // status of an HTTP answer
	Close  int    // WebSocket close code
	Exit   int    // exit code of a command that ends by it
}

// WebSocket close codes that fairlead uses (RFC 6455 section 7.4 and the private range).
const (
	CloseNormal     = 1000
	CloseGoingAway  = 1001
	CloseProtocol   = 1002
	ClosePolicy     = 1008
	CloseTooBig     = 1009
	CloseInternal   = 1011
	CloseRestart    = 1012
	CloseTryLater   = 1013
	CloseExpired    = 4001 // the token expired and was not renewed
	CloseInvalid    = 4003 // the token is invalid or was revoked
	CloseUnknown    = 4004 // no such tunnel here, or not yours
	CloseDisplaced  = 4008 // a newer lane carries this tunnel
	CloseLimit      = 4029 // a limit of the tenant is reached
	closeNotStarted = CloseInternal
)

// Exit codes of both programs.
const (
	ExitDone           = 0
	ExitFailed         = 1
	ExitConfiguration  = 2
	ExitAuthentication = 3
	ExitGaveUp         = 4
	ExitInterrupted    = 130 // SIGINT before it was ready
	ExitTerminated     = 143 // SIGTERM before it was ready
)

// The codes. A number, once released, keeps its meaning.
const (
	DialFailed       Code = 101
	DNSFailed        Code = 102
	TLSFailed        Code = 103
	UpgradeFailed    Code = 104
	LaneLost         Code = 105
	LaneDead         Code = 106
	ProxyFailed      Code = 107
	NoTunnel         Code = 108
	TunnelLost       Code = 109
	GaveUp           Code = 110
	ConnectionBroken Code = 111
	ProxyAuth        Code = 112
	NoSidecar        Code = 115

	TokenMissing      Code = 201
	TokenExpired      Code = 202
	TokenInvalid      Code = 203
	RouteForbidden    Code = 204
	TokenNotYet       Code = 205
	TokenUnreadable   Code = 206
	TokenRevoked      Code = 207
	AdminDenied       Code = 208
	RoleForbidden     Code = 209
	ClientCertRefused Code = 210

	ConfigInvalid    Code = 301
	ConfigUnreadable Code = 302
	ListenFailed     Code = 303
	KeyUnreadable    Code = 304
	AuditBroken      Code = 305
	SpoolUnusable    Code = 340
	SpoolKey         Code = 341

	RouteUnknown       Code = 401
	BackendUnreachable Code = 402
	BackendTimeout     Code = 403
	HostKeyRefused     Code = 404
	BackendAuth        Code = 405
	SSHHandshake       Code = 406
	TargetRefused      Code = 407
	PoolExhausted      Code = 408
	TunnelLimit        Code = 409
	StreamLimit        Code = 410
	OpenRate           Code = 411
	Draining           Code = 412
	MemoryLimit        Code = 413
	QueueFull          Code = 414
	OpenTimeout        Code = 415
	BackendBroken      Code = 416
	TunnelUnknown      Code = 417
	CircuitOpen        Code = 418
	NotFound           Code = 419
	ShuttingDown       Code = 420
	HandshakeLimit     Code = 421
	BadRequest         Code = 422
	KeysUnavailable    Code = 423
	Overloaded         Code = 424
	AuditFailed        Code = 425
	RequestLimit       Code = 426
	ReviewUnavailable  Code = 427
	DialQueueFull      Code = 428
	ProbeOver          Code = 430
	StoreUnavailable   Code = 431
	OwnerGone          Code = 432
	OwnerUnreachable   Code = 433
	OwnerUnknown       Code = 434
	LeaseLost          Code = 435
	PeerRefused        Code = 436
	Rebalanced         Code = 437
	DrainEnded         Code = 438
	SpoolFull          Code = 440
	SpoolCorrupt       Code = 441
	SpoolFailed        Code = 442
	SpoolDropped       Code = 443
	SpoolNoEnd         Code = 444

	ProtocolViolation  Code = 501
	MessageTooBig      Code = 502
	VersionUnsupported Code = 503
	Displaced          Code = 504
	HandshakeLate      Code = 505
	StreamsExhausted   Code = 506

	Internal Code = 900
	Panicked Code = 901
	Canceled Code = 902
)

var table = map[Code]Info{
	DialFailed:       {"cannot reach the gateway", "Check the endpoint's host and port, and that the network lets this machine out to it.", 502, closeNotStarted, ExitFailed},
	DNSFailed:        {"the gateway's name does not resolve", "Check the endpoint's spelling and the resolver of this machine or pod.", 502, closeNotStarted, ExitFailed},
	TLSFailed:        {"TLS with the gateway failed", "Check gateway.ca_file, the certificate's names and dates, and this machine's clock.", 502, closeNotStarted, ExitFailed},
	UpgradeFailed:    {"the WebSocket upgrade was refused", "See who answered: an ingress or proxy in between must pass HTTP/1.1 upgrades on to the gateway.", 502, closeNotStarted, ExitFailed},
	LaneLost:         {"the connection to the gateway broke", "Nothing, usually: the sidecar reconnects and resumes. If it happens often, look for idle limits on the way.", 502, CloseGoingAway, ExitFailed},
	LaneDead:         {"the connection to the gateway went silent", "Nothing, usually: the sidecar reconnects and resumes. If it happens often, a middlebox drops idle connections: lower tunnel.heartbeat.", 504, CloseGoingAway, ExitFailed},
	ProxyFailed:      {"the egress proxy refused", "Check gateway.proxy or HTTPS_PROXY, its credentials, and that it permits CONNECT to the gateway.", 502, closeNotStarted, ExitFailed},
	NoTunnel:         {"no tunnel came up in time", "See the sidecar's status for why it cannot connect; raise queue.wait if outages last longer.", 503, CloseTryLater, ExitFailed},
	TunnelLost:       {"the tunnel could not be resumed", "Connect again. If the gateway was away for longer than tunnel.resume_ttl, raise it.", 503, CloseUnknown, ExitFailed},
	GaveUp:           {"gave up reconnecting", "Mend what the last attempt says, then POST /api/reconnect or restart; reconnect.max_attempts: 0 never gives up.", 503, CloseTryLater, ExitGaveUp},
	ConnectionBroken: {"the application's connection broke", "See the application: it reset its connection.", 502, CloseNormal, ExitFailed},
	ProxyAuth:        {"the egress proxy wants credentials", "Put user name and password into the URL of gateway.proxy or HTTPS_PROXY; only the scheme Basic is spoken.", 502, closeNotStarted, ExitFailed},
	NoSidecar:        {"no sidecar answers on its admin API", "See whether the sidecar runs and what admin.listen says; --admin names another address.", 502, closeNotStarted, ExitFailed},

	TokenMissing:      {"no token was given", "Set gateway.token_file (or gateway.token); other clients send Authorization: Bearer.", 401, CloseInvalid, ExitAuthentication},
	TokenExpired:      {"the token has expired", "Renew the token; if it was just issued, compare the clocks of issuer and gateway.", 401, CloseExpired, ExitAuthentication},
	TokenInvalid:      {"the token is not valid", "Check issuer, audience and signing key of the token against auth.issuers of the gateway.", 401, CloseInvalid, ExitAuthentication},
	RouteForbidden:    {"the route is not allowed for this tenant", "Ask whoever runs the gateway for a policy rule that gives this tenant the route.", 403, ClosePolicy, ExitAuthentication},
	TokenNotYet:       {"the token is not valid yet", "Compare the clocks of issuer and gateway.", 401, CloseInvalid, ExitAuthentication},
	TokenUnreadable:   {"the token file cannot be read", "Check that gateway.token_file exists, is readable and is not empty.", 500, CloseInvalid, ExitAuthentication},
	TokenRevoked:      {"the token was revoked", "Get a new token from whoever issues them.", 401, CloseInvalid, ExitAuthentication},
	AdminDenied:       {"the admin API refused the caller", "Send the admin token as Authorization: Bearer.", 401, ClosePolicy, ExitAuthentication},
	RoleForbidden:     {"the role may not do this", "Ask somebody with the role operator, or use an operator's token.", 403, ClosePolicy, ExitAuthentication},
	ClientCertRefused: {"the client certificate does not fit", "Send a client certificate that an authority in tls.client_ca_file has signed and that the token is bound to, if it is bound to one.", 401, CloseInvalid, ExitAuthentication},

	ConfigInvalid:    {"the configuration is not valid", "Mend the named keys; `config reference` explains each.", 500, closeNotStarted, ExitConfiguration},
	ConfigUnreadable: {"a configuration file cannot be read", "Check the path and its permissions.", 500, closeNotStarted, ExitConfiguration},
	ListenFailed:     {"cannot listen on the address", "See whether another process has the port, or choose another in the configuration.", 500, closeNotStarted, ExitConfiguration},
	KeyUnreadable:    {"a key, certificate or secret file cannot be used", "Check that the file exists, is readable and holds what the key asks for.", 500, closeNotStarted, ExitConfiguration},
	AuditBroken:      {"the audit log does not verify", "See which line is named: from there on the log was edited, cut or reordered, or a file of it is missing.", 500, closeNotStarted, ExitFailed},
	SpoolUnusable:    {"the spool's directory cannot be used", "See that spool.dir is a directory that this user may write to, and that no other sidecar uses it.", 500, closeNotStarted, ExitConfiguration},
	SpoolKey:         {"the key of a spooled connection is not configured", "Put the key that it was written with into spool.old_key_files, and restart; until then it is kept.", 500, closeNotStarted, ExitConfiguration},

	RouteUnknown:       {"the gateway has no such route", "Check the route's name against routes in the gateway's configuration.", 404, ClosePolicy, ExitFailed},
	BackendUnreachable: {"the backend cannot be reached", "Check the backend's address and that its server runs; the gateway must be let through to it.", 502, CloseTryLater, ExitFailed},
	BackendTimeout:     {"the backend did not answer in time", "See whether the backend is overloaded or a firewall drops packets to it.", 504, CloseTryLater, ExitFailed},
	HostKeyRefused:     {"the backend's host key was refused", "If the key was changed on purpose, update host_keys.known_hosts_file; if not, somebody may be in between.", 502, ClosePolicy, ExitFailed},
	BackendAuth:        {"the backend refused the gateway's login", "Check user and key_file of the backend, and the backend's authorized_keys.", 502, ClosePolicy, ExitFailed},
	SSHHandshake:       {"the SSH handshake with the backend failed", "See that an SSH 2 server with modern algorithms answers on the backend's address.", 502, CloseTryLater, ExitFailed},
	TargetRefused:      {"the backend refused to connect to the target", "Check the route's target, that its server runs, and that the backend's sshd permits forwarding (AllowTcpForwarding, PermitOpen).", 502, CloseTryLater, ExitFailed},
	PoolExhausted:      {"all SSH connections to the backend are full", "Raise ssh_pool.connections or ssh_pool.channels_per_connection, or close idle connections.", 503, CloseTryLater, ExitFailed},
	TunnelLimit:        {"the tenant has as many tunnels as its tier allows", "Close other sidecars of this tenant, lower tunnels.max, or ask for a larger tier.", 429, CloseLimit, ExitFailed},
	StreamLimit:        {"the tenant has as many streams as its tier allows", "Close connections, or ask for a larger tier.", 429, CloseLimit, ExitFailed},
	OpenRate:           {"the tenant opens streams faster than its tier allows", "Open fewer connections, reuse them, or ask for a larger tier.", 429, CloseLimit, ExitFailed},
	Draining:           {"the gateway is draining", "Nothing: the sidecar moves to another gateway.", 503, CloseRestart, ExitFailed},
	MemoryLimit:        {"a memory budget is used up", "Read faster on the receiving side, or raise tunnel.memory.", 503, CloseTryLater, ExitFailed},
	QueueFull:          {"the sidecar's queue is full", "See the sidecar's status for why no tunnel is up; raise queue.size if bursts are larger.", 503, CloseTryLater, ExitFailed},
	OpenTimeout:        {"the open was not served in time", "See the gateway's log for what it waited for.", 504, CloseTryLater, ExitFailed},
	BackendBroken:      {"the backend's connection broke", "See the backend's log for why it ended the connection.", 502, CloseTryLater, ExitFailed},
	TunnelUnknown:      {"the gateway does not know the tunnel", "Nothing: the sidecar makes a new one. Streams of the old one are gone, because the gateway restarted or held it no longer.", 404, CloseUnknown, ExitFailed},
	CircuitOpen:        {"the backend failed repeatedly and is left alone for a while", "Mend the backend; the gateway tries again by itself after retry_after.", 503, CloseTryLater, ExitFailed},
	NotFound:           {"there is nothing at this address", "See docs/api.md for the addresses that exist.", 404, ClosePolicy, ExitFailed},
	ShuttingDown:       {"the other side is shutting down", "Nothing: connect again.", 503, CloseGoingAway, ExitFailed},
	HandshakeLimit:     {"too many handshakes from this address", "Wait, then try again.", 429, CloseLimit, ExitFailed},
	BadRequest:         {"the request is not understood", "See docs/api.md for what the address expects.", 400, ClosePolicy, ExitFailed},
	KeysUnavailable:    {"the gateway has no keys yet to check tokens of this issuer", "Check that the gateway reaches jwks_url of the issuer in auth.issuers; it keeps trying by itself.", 503, CloseTryLater, ExitFailed},
	Overloaded:         {"the gateway is short of memory or CPU", "Try again later; low priority is refused first. If it lasts, add replicas or memory.", 503, CloseTryLater, ExitFailed},
	AuditFailed:        {"the audit log cannot be written", "Free space or mend the permissions of audit.file; audit.on_failure decides whether streams are refused meanwhile.", 503, CloseTryLater, ExitFailed},
	RequestLimit:       {"too many requests to the admin API", "Wait, then try again.", 429, CloseLimit, ExitFailed},
	ReviewUnavailable:  {"the cluster could not be asked about the token", "Check that the gateway reaches the cluster's API and may create tokenreviews.", 503, CloseTryLater, ExitFailed},
	DialQueueFull:      {"too many opens of the tenant wait for the backend", "Open fewer connections at once; see whether the backend is slow to connect.", 503, CloseTryLater, ExitFailed},
	ProbeOver:          {"the probe has had its bytes or its time", "Nothing: a probe is for trying the path, not for carrying data. Ask `sidecar doctor` for less, with --throughput.", 413, CloseLimit, ExitFailed},
	StoreUnavailable:   {"the store that replicas share cannot be used", "Check store.address, its credentials, and that Redis runs, has memory and is no read-only replica. Until then each gateway goes by what it knows itself.", 503, CloseTryLater, ExitFailed},
	OwnerGone:          {"the gateway replica that held the tunnel is gone", "Nothing: the sidecar makes a new tunnel. If it happens outside of crashes, see that shutdown.drain is long enough for streams to finish.", 404, CloseUnknown, ExitFailed},
	OwnerUnreachable:   {"the gateway replica that holds the tunnel cannot be reached", "Check that replicas reach each other on peer.listen, and what peer.advertise says. The sidecar makes a new tunnel.", 404, CloseUnknown, ExitFailed},
	OwnerUnknown:       {"it cannot be found out which gateway replica holds the tunnel", "Check the store (FL-S431); the sidecar tries again, and may reach the replica itself.", 503, CloseTryLater, ExitFailed},
	LeaseLost:          {"another gateway replica has given the tunnel up, because this one could not be reached", "Nothing: the sidecar has been told, and has a new tunnel. Check the network between replicas.", 404, CloseUnknown, ExitFailed},
	PeerRefused:        {"a gateway replica was not accepted by another one", "Check that peer.secret_file holds the same secret at all replicas.", 403, ClosePolicy, ExitFailed},
	Rebalanced:         {"the gateway asks for the tunnel to be moved", "Nothing: the sidecar opens another tunnel, and streams that are open finish on the old one.", 503, CloseRestart, ExitFailed},
	DrainEnded:         {"the stream was cut at the end of the gateway's drain", "Connect again. If streams need longer, raise shutdown.drain, and in Kubernetes terminationGracePeriodSeconds with it.", 503, CloseRestart, ExitFailed},
	SpoolFull:          {"the spool is full", "See the sidecar's status for why it is not delivered; raise spool.size if outages last longer, or free space on the disk.", 503, CloseTryLater, ExitFailed},
	SpoolCorrupt:       {"a spooled connection is damaged", "Look at it with `sidecar spool show`; `sidecar spool retry` delivers what is valid of it, `sidecar spool drop` removes it. Check the disk.", 500, CloseInternal, ExitFailed},
	SpoolFailed:        {"the spool cannot be written or read", "Check the disk under spool.dir, its free space and its health.", 500, CloseInternal, ExitFailed},
	SpoolDropped:       {"a spooled connection was dropped", "If nobody asked for it, the spool was full and spool.full is drop-oldest: see why it is not delivered, or raise spool.size.", 503, CloseTryLater, ExitFailed},
	SpoolNoEnd:         {"the backend does not end a connection that was delivered", "Let the backend close its side once it has read everything, or raise spool.end_wait; until then the end of the connection is delivered again.", 504, CloseTryLater, ExitFailed},

	ProtocolViolation:  {"the peer broke the tunnel protocol", "Compare the versions of sidecar and gateway; if they match, report it with the log lines around it.", 400, CloseProtocol, ExitFailed},
	MessageTooBig:      {"a message was larger than agreed", "Compare tunnel.max_message of both sides and their versions.", 413, CloseTooBig, ExitFailed},
	VersionUnsupported: {"the peer speaks another version of the link", "Upgrade the older of sidecar and gateway.", 400, CloseProtocol, ExitFailed},
	Displaced:          {"a newer connection carries this tunnel", "Nothing: the sidecar has reconnected.", 409, CloseDisplaced, ExitFailed},
	HandshakeLate:      {"the handshake of the link took too long", "See what slows the path down; the gateway waits 10 s.", 408, CloseProtocol, ExitFailed},
	StreamsExhausted:   {"the tunnel has used up its stream ids", "Nothing: the sidecar opens a new tunnel.", 503, CloseNormal, ExitFailed},

	Internal: {"internal error", "Report it with the log lines around it.", 500, CloseInternal, ExitFailed},
	Panicked: {"a fault in one stream", "Report it with the stack in the log; other streams go on.", 500, CloseInternal, ExitFailed},
	Canceled: {"canceled", "Nothing: whoever asked went away.", 499, CloseNormal, ExitFailed},
}

// Codes lists every known code in ascending order.
func Codes() []Code { return slices.Sorted(maps.Keys(table)) }

// Answer is the JSON body that carries an error in an HTTP answer.
type Answer struct {
	Code         string   `json:"code"`
	Category     Category `json:"category"`
	Message      string   `json:"message"`
	Advice       string   `json:"advice"`
	RetryAfterMS int64    `json:"retry_after_ms"`
	Quota        *Quota   `json:"quota,omitempty"`
}

// HTTP maps err to an HTTP status and JSON body. An error without a code is told as internal, without its text: that
// may name what a stranger has no business to know, and it is in the log.
func HTTP(err error) (status int, body []byte) {
	e := From(err)
	info := e.Code.Info()
	text := e.Text()
	if e.Code == Internal {
		text = info.Title
	}
	body, _ = json.Marshal(Answer{e.Code.String(), e.Category(), text, info.Advice, e.RetryAfter.Milliseconds(), e.Quota}) // cannot fail: strings and a number
	return info.HTTP, body
}

// CloseFrame maps err to a WebSocket close code and a reason of at most 123 bytes (RFC 6455 section 5.5).
func CloseFrame(err error) (code int, reason string) {
	if err == nil {
		return CloseNormal, "done"
	}
	e := From(err)
	reason = strings.ToValidUTF8(e.Code.String()+" "+e.Message, "?") // else the peer must fail the connection
	if len(reason) > 123 {
		reason = truncateUTF8(reason, 120) + "…"
	}
	return e.Code.Info().Close, reason
}

func truncateUTF8(s string, n int) string {
	for n > 0 && s[n]&0xC0 == 0x80 { // never cut inside a rune
		n--
	}
	return s[:n]
}

// ExitCode maps err to a process exit code.
func ExitCode(err error) int {
	if err == nil {
		return ExitDone
	}
	return From(err).Code.Info().Exit
}
