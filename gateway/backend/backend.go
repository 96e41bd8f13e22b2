// Package backend leads to where routes end: to a backend's own port (passthrough), or through a channel of a pooled SSH
// connection to a target behind the backend (forward).
//
// SSH connections belong to one tenant and one backend and are never shared between tenants. One goroutine per SSH
// connection sends its keepalives and ends it when it is dead, idle or old; one goroutine per channel waits for its end.
// The slots of all pools are guarded by a single lock, under which nothing ever waits for the network.
package backend

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Conn is a connection to where a route leads, with half-close. The caller owns and closes it. In mode passthrough it is
// the *net.TCPConn itself, so that the kernel can move its bytes. In mode forward it is a channel of an SSH connection:
// deadlines are not supported there, see Set.Dial.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Mode is how the gateway bridges a route.
type Mode string

// The modes of a route.
const (
	Passthrough Mode = "passthrough" // bytes to the backend's port
	Forward     Mode = "forward"     // a direct-tcpip channel (RFC 4254 section 7.2) to a target behind the backend
)

// HostKeyMode is what happens to the key of a backend that is not known yet.
type HostKeyMode string

// The host key modes. In both a key that differs from the known one is refused.
const (
	Strict   HostKeyMode = "strict"    // refused; the default
	FirstUse HostKeyMode = "first-use" // trusted and remembered
)

// Route is a name that sidecars ask for and where it leads.
type Route struct {
	Name    string
	Backend string // name of a backend
	Mode    Mode
	Target  string // host:port behind the backend; only, and always, with Forward
}

// Backend is a server that routes lead to. All but Name, Address, DialTimeout, Dialing and Health
// matter only to routes with Forward.
type Backend struct {
	Name            string
	Address         string        // host:port
	User            string        // login
	KeyFile         string        // private key without passphrase, PEM or OpenSSH format; read again for each login
	CertificateFile string        // user certificate for the key; empty: none
	MoreKeyFiles    []string      // keys to be tried after KeyFile, in this order; at most 4
	Identity        *Identity     // certificates of our own for each login, instead of key files; nil: none
	KnownHostsFile  string        // OpenSSH format, @cert-authority and @revoked included; read again for each login. Required with Strict
	RevokedFile     string        // public keys of hosts and authorities that are refused, one a line; read again for each login. Empty: none
	HostKeyMode     HostKeyMode   // empty: Strict
	DialTimeout     time.Duration // for TCP, handshake and login together; 0: 10s
	Dialing         Dialing
	Health          Health
	Warm            int // connections to be kept ready for each tenant that has used the backend within PoolConfig.WarmFor; bounded by PoolConfig.Connections
}

// PoolConfig bounds the SSH connections of one tenant to one backend. With an Identity, all but TenantConnections are
// bounds for each certificate's names by themselves.
type PoolConfig struct {
	ChannelsPerConnection int           // 0: 10
	Connections           int           // that give new channels; retired ones come on top while their channels last. 0: 3
	TenantConnections     int           // with an Identity: of all names together, retired ones included; the longest idle one makes room. 0: 32
	Keepalive             time.Duration // between questions whether the backend is still there; 0: 60s; negative: none are asked
	KeepaliveTimeout      time.Duration // for the answer; 0: the smaller of Keepalive and 15s
	Idle                  time.Duration // without channels before the connection is closed; 0: 5m
	MaxAge                time.Duration // after which, or up to a fifth earlier, a connection gives no new channels; 0: 1h; negative: at no age
	WarmFor               time.Duration // after its last stream that a tenant's connections are kept ready, with Backend.Warm; 0: 15m
}

// Breaker stops dialing a backend that failed repeatedly.
type Breaker interface {
	// Do runs fn and returns its error, or refuses.
	Do(ctx context.Context, backend string, fn func(context.Context) error) error
	// Try is Do for when the circuit is not closed. Else it does nothing and returns false.
	Try(ctx context.Context, backend string, fn func(context.Context) error) (bool, error)
	// Closed reports whether Do would run anything.
	Closed(backend string) bool
	// Watch has fn called after each change of a circuit, with no lock held, until stop is.
	Watch(fn func(backend string)) (stop func())
}

// HostKeyStore shares the host keys of first use between replicas.
type HostKeyStore interface {
	// PinHostKey stores key (one line, as in authorized_keys) for a backend's address unless there is one already, in
	// one atomic step, and returns the one that is stored now.
	PinHostKey(ctx context.Context, address, key string) (pinned string, err error)
}

// Config is what a Set needs.
type Config struct {
	Backends []Backend
	Routes   []Route
	Pool     PoolConfig

	Dial     func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer
	Breaker  Breaker                                                              // nil: none
	HostKeys HostKeyStore                                                         // nil: each replica remembers for itself
	Instance string                                                               // the gateway's name, {gateway} in templates of certificates
	Now      func() time.Time                                                     // the clock of certificates; nil: time.Now

	// OnHostKey is told each decision about a host key other than that a known one was accepted, before the connection
	// goes on or ends. It must not block for long. nil: nobody is.
	OnHostKey func(HostKeyEvent)
	// OnCertificate is told each certificate before it is used; when it returns an error the login fails with that. nil:
	// nobody is.
	OnCertificate func(CertificateEvent) error

	SlowDial time.Duration // dials that take longer are counted and logged; 0: 5s
	Logger   *slog.Logger  // nil: silent
	Metrics  *metrics.Set  // nil: counted nowhere

	// BackendMetrics gives each backend's metrics a set of their own, so that they disappear with it. nil: all are in
	// Metrics, for good.
	BackendMetrics MetricSets
}

// Set is all routes, backends and pools. It is safe for concurrent use. Close it to end its SSH connections.
type Set struct {
	table   atomic.Pointer[table]      // swapped under mu
	poolNow atomic.Pointer[PoolConfig] // likewise

	dialRaw       func(ctx context.Context, network, address string) (net.Conn, error)
	breaker       Breaker
	keys          *hostKeys
	files         *keyFiles
	onCertificate func(CertificateEvent) error
	instance      string
	now           func() time.Time
	slow          time.Duration
	log           *slog.Logger
	metrics       *metrics.Set
	metricSets    MetricSets

	base    context.Context // of all dials for pools; ended by Close
	cancel  context.CancelFunc
	unwatch func() // nil without a breaker

	mu     sync.Mutex // guards all below, and the pools' and links' fields that say so
	pools  map[poolKey]*pool
	groups map[groupKey]*group
	closed bool
	work   sync.WaitGroup // all goroutines; added to only while not closed
}

// remote is a backend and what belongs to it for all tenants. Its fields are not changed once it is in the table.
type remote struct {
	Backend
	namer  *namer // nil without Identity
	counts *counts
	dials  *turns   // who want a passthrough connection
	logins *turns   // pools that want an SSH connection
	health *monitor // nil: no checks
}

// New checks the configuration, including that files can be read. It dials nothing but what Backend.Health asks for.
// Errors are errs.ConfigInvalid and errs.KeyUnreadable; several are joined.
func New(cfg Config) (*Set, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.fill()
	s := &Set{
		dialRaw:       cfg.Dial,
		breaker:       cfg.Breaker,
		keys:          newHostKeys(&cfg),
		files:         &keyFiles{log: cfg.Logger, warned: make(map[string]bool)},
		onCertificate: cfg.OnCertificate,
		instance:      cfg.Instance,
		now:           cfg.Now,
		slow:          cfg.SlowDial,
		log:           cfg.Logger,
		metrics:       cfg.Metrics,
		metricSets:    cfg.BackendMetrics,
		pools:         make(map[poolKey]*pool),
		groups:        make(map[groupKey]*group),
	}
	s.base, s.cancel = context.WithCancel(context.Background())
	none := &table{}
	first, _, err := s.plan(&cfg, none)
	if err != nil {
		s.cancel()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.equipLocked(none, first)
	s.poolNow.Store(&cfg.Pool)
	s.table.Store(first)
	if s.breaker != nil {
		s.unwatch = s.breaker.Watch(s.circuitChanged)
	}
	return s, nil
}

// Route returns the route of that name.
func (s *Set) Route(name string) (Route, bool) {
	r, ok := s.table.Load().routes[name]
	return r, ok
}

// Dial connects to where the route leads, for the caller. The context bounds only the dial.
//
// A Conn of a route with Forward differs from a TCP connection in these ways: deadlines return an error (bound a
// stalled stream by closing it); a Read that is blocked while Close is called returns when the backend has confirmed the
// close, or when the SSH connection ends. When the SSH connection breaks, Read returns errs.BackendBroken and never
// io.EOF, so that a cut is not taken for an end. After the other side has closed, Write fails with EPIPE, as TCP does.
//
// Errors: RouteUnknown, RouteForbidden (the token has not what certificates for the backend say), BackendUnreachable,
// BackendTimeout, HostKeyRefused, BackendAuth, SSHHandshake, TargetRefused, PoolExhausted, BackendBroken, KeyUnreadable,
// CircuitOpen, DialQueueFull, OpenTimeout (the context's deadline), ShuttingDown, Canceled, and what Config.OnCertificate
// returns.
func (s *Set) Dial(ctx context.Context, who Caller, route string) (Conn, error) {
	now := s.table.Load()
	r, ok := now.routes[route]
	if !ok {
		return nil, errs.New(errs.RouteUnknown, "there is no route %q", route)
	}
	b := now.backends[r.Backend]
	var conn Conn
	var err error
	if r.Mode == Forward {
		conn, err = s.forward(ctx, b.Name, who, r.Target)
	} else {
		conn, err = s.passthrough(ctx, b, who.Tenant)
	}
	if err != nil {
		b.counts.failed(err)
		return nil, err
	}
	return conn, nil
}

// Close ends all SSH connections: each open channel is closed and given a second to say so, then the connection is.
// Connections of routes with Passthrough belong to their callers. When ctx ends first, what is left is cut, and its error
// returned as errs.ShuttingDown. Dials fail with errs.ShuttingDown from the moment it is called.
func (s *Set) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	links := s.shutLocked()
	s.mu.Unlock()
	s.cancel()
	if s.unwatch != nil {
		s.unwatch()
	}

	done := make(chan struct{})
	go func() {
		s.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	for _, l := range links {
		_ = l.wire.Close() // its reader reports why
	}
	<-done
	return errs.Wrap(errs.ShuttingDown, ctx.Err(), "%d SSH connections to backends were cut because there was no time to close them", len(links))
}

// shutLocked fails everyone who waits, and tells every connection to end.
func (s *Set) shutLocked() []*link {
	var links []*link
	for _, p := range s.pools {
		p.failLocked(errs.New(errs.ShuttingDown, "the gateway is shutting down"), nil, p.waiting.Len())
		for _, l := range p.all() {
			l.endLocked(reasonShutdown)
			links = append(links, l)
		}
	}
	return links
}

// spawn runs fn on a goroutine that Close waits for; false: it is too late.
func (s *Set) spawn(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spawnLocked(fn)
}

func (s *Set) spawnLocked(fn func()) bool {
	if s.closed {
		return false
	}
	s.work.Go(fn)
	return true
}

// fields makes the fields that every line about an SSH connection carries.
func fields(b *remote, tenant string) []any {
	return []any{logging.FieldComponent, "backend", logging.FieldBackend, b.Name, logging.FieldTenant, tenant, logging.FieldPeer, b.Address}
}
