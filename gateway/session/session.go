// Package session holds the gateway's tunnels: it makes them, runs their lanes, keeps them for a while when a lane is lost
// so that they can be resumed, and ends them.
package session

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
	"fairlead/shared/telemetry"
)

// Config is what a Registry needs.
type Config struct {
	Link      link.Config   // of every tunnel; its callbacks are set here
	ResumeTTL time.Duration // how long a tunnel without a lane is held
	Handshake time.Duration // for the handshake of the link
	Replicas  Replicas      // of which this gateway is one
	Opener    *Opener
	Limits    Limits
	Verify    func(ctx context.Context, token string, was Identity) (Identity, error) // of a token that is to replace was's
	Revoked   func(Identity) error                                                    // what has become of a verified identity since; nil: nothing
	Audit     audit.Recorder                                                          // nil: nothing is recorded
	Logger    *slog.Logger
	Metrics   *metrics.Set
	Now       func() time.Time
}

// Registry holds the tunnels of a gateway.
type Registry struct {
	cfg Config
	ctx context.Context // ends when the registry closes: opens that are under way end with it
	end context.CancelFunc

	mu       sync.Mutex
	sessions map[link.ID]*session
	draining *link.GoAway
	drain    *drain // with draining
	closed   bool
	wg       sync.WaitGroup // lanes and sessions

	leases *leases // nil: there are no other replicas

	resumed, relayed, forwarded, refused, gone, lost, cut *metrics.Counter
	rtt                                                   *metrics.PrometheusHistogram
}

// session is one tunnel and who it belongs to.
type session struct {
	r       *Registry
	tunnel  *link.Tunnel
	who     *Bearer
	log     *slog.Logger
	from    atomic.Pointer[origin] // of its last connection
	since   time.Time
	moving  atomic.Bool // its sidecar was asked to move
	release func()      // gives the tunnel's slot back
	forget  func()      // gives back its part in the tenant's memory budget, once nothing is retained any more

	telling sync.Mutex // keeps what is recorded of lanes in order; held while that waits for the disk, which mu is not

	mu     sync.Mutex
	lanes  int         // running; a new one may start before the old one has ended
	expiry *time.Timer // the token's
	orphan *time.Timer // runs while there is no lane
	flow   flow
}

// New makes a Registry.
func New(cfg Config) *Registry {
	ctx, end := context.WithCancel(context.Background())
	if cfg.Audit == nil {
		cfg.Audit = audit.Discard
	}
	if cfg.Revoked == nil {
		cfg.Revoked = func(Identity) error { return nil }
	}
	r := &Registry{cfg: cfg, ctx: ctx, end: end, sessions: map[link.ID]*session{},
		resumed:   cfg.Metrics.NewCounter(`fairlead_gateway_resumes_total{kind="same"}`),
		relayed:   cfg.Metrics.NewCounter(`fairlead_gateway_resumes_total{kind="relayed"}`),
		forwarded: cfg.Metrics.NewCounter("fairlead_gateway_resumes_forwarded_total"), // to the owners of their tunnels
		gone:      cfg.Metrics.NewCounter("fairlead_gateway_resumes_lost_total"),      // of tunnels that are no more
		refused:   cfg.Metrics.NewCounter("fairlead_gateway_resumes_refused_total"),
		lost:      cfg.Metrics.NewCounter("fairlead_gateway_tunnels_lost_total"),
		cut:       cfg.Metrics.NewCounter("fairlead_gateway_drain_ended_streams_total"),
		rtt:       cfg.Metrics.NewPrometheusHistogramExt("fairlead_gateway_tunnel_rtt_seconds", telemetry.LatencyBuckets()),
	}
	if cfg.Replicas.Store != nil {
		r.leases = newLeases(r, cfg)
	}
	cfg.Metrics.NewGauge("fairlead_gateway_draining", func() float64 {
		if r.Draining() {
			return 1
		}
		return 0
	})
	cfg.Metrics.NewGauge("fairlead_gateway_tunnels", func() float64 { return float64(r.count().Tunnels) })
	cfg.Metrics.NewGauge("fairlead_gateway_tunnels_detached", func() float64 { return float64(r.count().Detached) })
	cfg.Metrics.NewGauge("fairlead_gateway_streams", func() float64 { return float64(r.count().Streams) })
	cfg.Metrics.NewGauge("fairlead_gateway_window_bytes", func() float64 { return float64(cfg.Link.Budget.Used()) })
	if c := cfg.Link.Compressor; c != nil {
		cfg.Metrics.RegisterMetricsWriter(func(w io.Writer) { c.WriteMetrics(w, "fairlead_gateway") })
	}
	return r
}

// Opener serves opens outside tunnels too.
func (r *Registry) Opener() *Opener { return r.cfg.Opener }

// event is an act of the tunnel's sidecar.
func (s *session) event(action audit.Action, result audit.Result) audit.Event {
	return about(s.who.Identity(), audit.Event{Action: action, Result: result, Client: s.from.Load().client, Tunnel: s.id()})
}

// record records an act of the tunnel's sidecar that ended with err.
func (s *session) record(action audit.Action, err error) error {
	event := s.event(action, resultOf(err))
	event.Code, event.Detail = errs.CodeOf(err), detail(err)
	return s.r.cfg.Audit.Record(event)
}

func (s *session) id() string { return s.tunnel.Name() }

// run serves a lane and, when it was the last one, starts the time in which the tunnel can be resumed.
func (s *session) run(lane *link.Lane) {
	s.mu.Lock()
	s.lanes++
	if s.orphan != nil {
		s.orphan.Stop()
		s.orphan = nil
	}
	s.mu.Unlock()
	err := lane.Run()
	s.telling.Lock()
	defer s.telling.Unlock()
	if !s.detach() {
		return
	}
	event := s.event(audit.Detach, audit.Failed)
	event.Code, event.Detail = errs.CodeOf(err), detail(err)
	_ = s.r.cfg.Audit.Record(event)
	s.log.Info("tunnel detached", append(logging.Error(err), "held_for", s.r.cfg.ResumeTTL.String())...)
}

// detach counts a lane that has ended and, if that leaves the tunnel without one, starts the time in which it can be
// resumed. A lane that has resumed it may be about to run.
func (s *session) detach() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes--
	if s.tunnel.Err() != nil || s.lanes > 0 || s.tunnel.Attached() {
		return false
	}
	s.orphan = time.AfterFunc(s.r.cfg.ResumeTTL, func() {
		if s.tunnel.Attached() { // resumed at the last moment; its lane starts the time anew
			return
		}
		s.r.lost.Inc()
		s.tunnel.Close(errs.New(errs.TunnelLost, "no lane came within %v", s.r.cfg.ResumeTTL))
	})
	return true
}

// reap forgets a tunnel that is over.
func (s *session) reap() {
	defer s.r.wg.Done()
	s.mu.Lock()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	if s.orphan != nil {
		s.orphan.Stop()
	}
	s.mu.Unlock()
	s.r.mu.Lock()
	delete(s.r.sessions, s.tunnel.ID())
	s.r.mu.Unlock()
	s.r.leases.end(s)
	s.release()
	s.tunnel.Wait()
	s.forget()
	st := s.tunnel.Stats()
	s.log.Info("tunnel ended", append(logging.Error(s.tunnel.Err()), "streams", st.Opened, "sent", st.BytesSent, "received", st.BytesReceived,
		"resumes", st.Resumes, "replayed", st.BytesReplayed)...)
	event := s.event(audit.Disconnect, resultOf(s.tunnel.Err()))
	event.Code, event.Detail, event.Duration = errs.CodeOf(s.tunnel.Err()), detail(s.tunnel.Err()), s.r.cfg.Now().Sub(s.since)
	event.Sent, event.Received = st.BytesSent, st.BytesReceived
	_ = s.r.cfg.Audit.Record(event)
}

// take replaces the identity by that of a newer token of the same subject.
func (s *session) take(who Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who.take(who)
	if s.expiry != nil && s.tunnel.Err() == nil {
		s.expiry.Reset(time.Until(who.Expires))
	}
}

func (s *session) expired() {
	who := s.who.Identity()
	if s.r.cfg.Now().Before(who.Expires) { // renewed meanwhile, or the clock was set
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.tunnel.Err() == nil {
			s.expiry.Reset(time.Until(who.Expires))
		}
		return
	}
	s.tunnel.Close(errs.New(errs.TokenExpired, "the token expired at %s and was not renewed", who.Expires.UTC().Format(time.RFC3339)))
}

// renew takes a renewed token in-band: it must speak for the same subject.
func (s *session) renew(token string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(s.r.ctx, s.r.cfg.Handshake)
	defer cancel()
	who, err := s.r.cfg.Verify(ctx, token, s.who.Identity())
	if err == nil && !s.who.Identity().same(who) {
		err = errs.New(errs.TokenInvalid, "the renewed token is for another identity than the tunnel's")
	}
	event := s.event(audit.Renew, resultOf(err))
	event.TokenID, event.Code, event.Detail = who.TokenID, errs.CodeOf(err), detail(err)
	if unrecorded := s.r.cfg.Audit.Record(event); err == nil {
		err = unrecorded
	}
	if err != nil {
		s.r.cfg.Opener.log.Say(s.log, slog.LevelWarn, errs.CodeOf(err).String()+s.who.Identity().Tenant, "token renewal refused", logging.Error(err)...)
		return time.Time{}, err
	}
	s.take(who)
	if err := s.r.cfg.Revoked(who); err != nil { // a revocation that came since the token was verified has not met it here
		s.tunnel.Close(err)
		return time.Time{}, err
	}
	s.log.Info("token renewed", "token_expires", who.Expires.UTC().Format(time.RFC3339))
	return who.Expires, nil
}

// serve connects one stream and lets it be carried until it is over.
func (s *session) serve(st *link.Stream) {
	req := st.Request()
	log := s.log.With(streamAttrs(st)...)
	ask := Ask{Who: s.who, Route: req.Route, Priority: req.Priority, Client: s.from.Load().client, App: req.Peer, Tunnel: s.id(), Stream: streamID(st), Trace: link.TraceID(req.Trace)}
	ctx, stop := st.Opening(s.r.ctx)
	opened, err := s.r.cfg.Opener.Open(ctx, ask, log)
	stop()
	if err != nil {
		st.Reset(err)
		return
	}
	if opened.to.compresses(req.Compression) {
		st.AcceptCompressed()
	} else {
		st.Accept()
	}
	opened.Carry(st.Totals, st.Reset)
	s.r.wg.Add(1) // reap, which waits for this function, still holds it
	relay.Start(st, opened.Conn, func(err error) {
		defer s.r.wg.Done()
		opened.Over(err)
	})
}

func streamID(st *link.Stream) string { return strconv.FormatUint(uint64(st.ID()), 10) }

func streamAttrs(st *link.Stream) []any {
	req := st.Request()
	attrs := []any{logging.FieldStream, streamID(st), "app", req.Peer}
	if req.Trace != "" {
		attrs = append(attrs, logging.FieldTrace, link.TraceID(req.Trace))
	}
	return attrs
}
