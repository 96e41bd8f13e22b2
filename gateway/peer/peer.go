// Package peer is how replicas of a gateway reach each other: a port on which nobody is spoken to who does not know the
// replicas' secret, and relays. A tunnel that comes to another replica than its owner is carried there: the handshake goes over in
// the header of an upgrade, and from then on bytes are copied, which nobody here takes apart.
package peer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// Config is what a Peer needs.
type Config struct {
	Listen     string // host:port
	SecretFile string // what replicas prove to each other to know; see Reload
	Replica    string // ID of this replica: calls for another one are refused
	Name       string // of this replica, for people
	// Admit decides about a call: whether this replica has the tunnel, and whether its token is good. An error is the answer, with
	// the status of its code. accept is given the connection once it is upgraded, which may never happen: what it needs it takes
	// itself. It owns the connection, and returns when the handshake is over.
	Admit      func(ctx context.Context, call Call) (accept func(conn link.Conn, hs *link.Handshake), err error)
	MaxMessage int            // bytes in a WebSocket message
	Timeout    time.Duration  // of a Dial, up to the answer; 0: 5 s
	Tune       func(net.Conn) // applied to TCP connections, both ways; nil: none
	Logger     *slog.Logger
	Metrics    *metrics.Set
}

// Limits of the port. Nobody gets to HTTP who has not proven to know the secret.
const (
	path           = "/v1/peer/tunnel"
	headerBuffer   = 64 << 10         // a token, a certificate, a HELLO
	readTimeout    = 5 * time.Second  // for a request, from the handshake on
	writeTimeout   = 10 * time.Second // for an answer
	admitTimeout   = 10 * time.Second
	defaultTimeout = 5 * time.Second
)

// Peer is the port for other replicas, and the way to theirs.
type Peer struct {
	cfg      Config
	keys     *keyring
	gate     *gate
	http     fasthttp.Server
	upgrader websocket.FastHTTPUpgrader
	relays   *relays
	log      *logging.Tamed // what strangers cause
	refused  *metrics.Counter
	ctx      context.Context // of calls
	end      context.CancelFunc

	mu     sync.Mutex
	closed bool           // no more upgraded connections
	served sync.WaitGroup // upgraded connections that are being accepted
}

// New reads the secret and binds the listener. Its errors are KeyUnreadable and ListenFailed.
func New(cfg Config) (*Peer, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	p := &Peer{cfg: cfg, keys: &keyring{file: cfg.SecretFile}, log: logging.NewTamed()}
	if err := p.keys.reload(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "cannot listen on %s for other replicas", cfg.Listen)
	}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.relays = newRelays(cfg.Metrics)
	p.refused = cfg.Metrics.NewCounter(`fairlead_gateway_peer_refused_total{side="dialling"}`)
	p.gate = newGate(&ws.Listener{Listener: l, Tune: cfg.Tune}, gateConfig{tls: p.keys.server(), to: cfg.Logger, log: p.log,
		refused: cfg.Metrics.NewCounter(`fairlead_gateway_peer_refused_total{side="accepting"}`)})
	p.upgrader = websocket.FastHTTPUpgrader{
		ReadBufferSize:  ws.ReadBufferSize,
		WriteBufferSize: ws.WriteBufferSize,
		WriteBufferPool: ws.WriteBuffers,
		Subprotocols:    []string{link.Subprotocol},
		Error: func(ctx *fasthttp.RequestCtx, _ int, reason error) {
			answer(ctx, errs.Wrap(errs.BadRequest, reason, "the upgrade is refused"))
		},
	}
	p.http = fasthttp.Server{ // as gateway/server has it, which says why
		Handler:                      p.handle,
		ErrorHandler:                 malformed,
		Name:                         "fairlead",
		ReadBufferSize:               headerBuffer,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  readTimeout,
		MaxRequestBodySize:           1,
		MaxRequestsPerConn:           1,
		ContinueHandler:              func(*fasthttp.RequestHeader) bool { return false },
		DisablePreParseMultipartForm: true,
		KeepHijackedConns:            true,
		ReduceMemoryUsage:            true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		Logger:                       httpLogger{p},
	}
	return p, nil
}

// Addr is the address of the port.
func (p *Peer) Addr() net.Addr { return p.gate.Addr() }

// Reload reads the secret file anew. With an error (KeyUnreadable) what was read before stays in force; connections stay in any
// case.
func (p *Peer) Reload() error { return p.keys.reload() }

// Serve answers other replicas until Shutdown.
func (p *Peer) Serve() error {
	p.gate.start()
	if err := p.http.Serve(p.gate); err != nil {
		return errs.Wrap(errs.ListenFailed, err, "serving %s", p.Addr())
	}
	return nil
}

// Shutdown stops accepting, cuts the relays, and waits until ctx ends for calls that are being answered. What was accepted is with
// whom Admit has given it to.
func (p *Peer) Shutdown(ctx context.Context) error {
	defer p.log.Flush()
	p.gate.Close()
	p.relays.close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end()
	err := p.http.ShutdownWithContext(ctx)
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		p.gate.wait()
		p.served.Wait()
		p.relays.wait()
	}()
	select {
	case <-over:
		return err
	case <-ctx.Done():
		return errors.Join(err, context.Cause(ctx))
	}
}

// enter counts an upgraded connection, unless the port is closed.
func (p *Peer) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.served.Add(1)
	return true
}

// httpLogger takes what fasthttp has to say, without its arguments: they may quote a request.
type httpLogger struct{ p *Peer }

func (l httpLogger) Printf(format string, _ ...any) {
	l.p.log.Say(l.p.cfg.Logger, slog.LevelDebug, format, "peer http", logging.FieldError, format)
}
