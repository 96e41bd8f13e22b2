// Package session holds the gateway's tunnels: it makes them, runs their lanes, keeps them for a while when a lane is lost
// so that they can be resumed, and ends them.
package session

import (
	"context"
	"errors"
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
	closed   bool
	wg       sync.WaitGroup // lanes and sessions

	resumed, refused, lost *metrics.Counter
	rtt                    *metrics.PrometheusHistogram
}

// session is one tunnel and who it belongs to.
type session struct {
	r       *Registry
	tunnel  *link.Tunnel
	who     *Bearer
	log     *slog.Logger
	peer    atomic.Pointer[string] // network address of the sidecar, of its last connection
	since   time.Time
	release func() // gives the tunnel's slot back
	forget  func() // gives back its part in the tenant's memory budget, once nothing is retained any more

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
		resumed: cfg.Metrics.NewCounter("fairlead_gateway_resumes_total"),
		refused: cfg.Metrics.NewCounter("fairlead_gateway_resumes_refused_total"),
		lost:    cfg.Metrics.NewCounter("fairlead_gateway_tunnels_lost_total"),
		rtt:     cfg.Metrics.NewPrometheusHistogramExt("fairlead_gateway_tunnel_rtt_seconds", telemetry.LatencyBuckets()),
	}
	cfg.Metrics.NewGauge("fairlead_gateway_tunnels", func() float64 { return float64(r.count().Tunnels) })
	cfg.Metrics.NewGauge("fairlead_gateway_tunnels_detached", func() float64 { return float64(r.count().Detached) })
	cfg.Metrics.NewGauge("fairlead_gateway_streams", func() float64 { return float64(r.count().Streams) })
	cfg.Metrics.NewGauge("fairlead_gateway_window_bytes", func() float64 { return float64(cfg.Link.Budget.Used()) })
	if c := cfg.Link.Compressor; c != nil {
		cfg.Metrics.RegisterMetricsWriter(func(w io.Writer) { c.WriteMetrics(w, "fairlead_gateway") })
	}
	return r
}

// Serve takes a new connection over: it performs the handshake, and leaves the connection to run as a lane in a goroutine
// of the registry, which keeps less stack than its caller needed to get here. who is what the token of the upgrade says.
func (r *Registry) Serve(conn link.Conn, who Identity, peer string) {
	log := r.cfg.Logger.With(logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, logging.FieldPeer, peer)
	if !r.enter() {
		refuse(conn, errs.New(errs.ShuttingDown, "the gateway is shutting down"))
		return
	}
	defer r.wg.Done()
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Handshake)
	defer cancel()
	s, lane, err := r.handshake(ctx, conn, who, peer, log)
	if err != nil {
		r.cfg.Opener.log.Say(log, slog.LevelWarn, errs.CodeOf(err).String()+who.Tenant, "tunnel refused", logging.Error(err)...)
		refuse(conn, err)
		return
	}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		s.run(lane)
	}()
}

// Opener serves opens outside tunnels too.
func (r *Registry) Opener() *Opener { return r.cfg.Opener }

func (r *Registry) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.wg.Add(1)
	return true
}

func refuse(conn link.Conn, err error) {
	conn.Close(errs.CloseFrame(err))
	conn.Drain()
	conn.Abort()
	conn.Wait()
}

func (r *Registry) handshake(ctx context.Context, conn link.Conn, who Identity, peer string, log *slog.Logger) (*session, *link.Lane, error) {
	hs, err := link.Greet(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	if id, ok := hs.Tunnel(); ok {
		return r.resume(hs, id, who, peer, log)
	}
	s, lane, err := r.accept(hs, who, peer, log)
	if err != nil && s == nil { // else its end is recorded
		_ = r.cfg.Audit.Record(about(who, audit.Event{Action: audit.Connect, Result: resultOf(err), Client: peer, Code: errs.CodeOf(err), Detail: detail(err)}))
	}
	return s, lane, err
}

// accept makes a new tunnel. With an error there is none, but if it had been made already, it is returned too.
func (r *Registry) accept(hs *link.Handshake, who Identity, peer string, log *slog.Logger) (*session, *link.Lane, error) {
	r.mu.Lock()
	draining := r.draining != nil
	r.mu.Unlock()
	if draining {
		return nil, nil, errs.New(errs.Draining, "this gateway takes no new tunnels")
	}
	release, err := r.admit(who)
	if err != nil {
		return nil, nil, err
	}
	budget, returned := r.cfg.Limits.Budget(who.Tenant, who.Tier)
	s := &session{r: r, since: r.cfg.Now(), who: NewBearer(who), release: release, forget: returned}
	s.peer.Store(&peer)
	cfg := r.cfg.Link
	cfg.Budget = budget
	cfg.ResumeTTL = r.cfg.ResumeTTL
	cfg.Logger = log
	cfg.Accept = s.serve
	cfg.Renew = s.renew
	cfg.Ended = s.reap // also when the handshake fails from here on
	cfg.Made = func(t *link.Tunnel) {
		s.tunnel = t
		s.log = log.With(logging.FieldTunnel, t.Name())
		if !r.add(s) {
			t.Close(errs.New(errs.ShuttingDown, "the gateway is shutting down"))
			return
		}
		// A revocation ends the tunnels that are there: this one is from here on.
		err := r.cfg.Revoked(who)
		if unrecorded := s.record(audit.Connect, err); err == nil {
			err = unrecorded
		}
		if err != nil {
			t.Close(err)
		}
	}
	_, lane, err := hs.Accept(cfg)
	if err != nil {
		return s, nil, err
	}
	s.watchExpiry(who)
	s.log.Info("tunnel connected", "token_expires", who.Expires.UTC().Format(time.RFC3339))
	return s, lane, nil
}

// admit takes a tunnel's slot.
func (r *Registry) admit(who Identity) (release func(), err error) {
	if err := r.cfg.Limits.ShedTunnel(who.Tenant); err != nil {
		return nil, err
	}
	return r.cfg.Limits.Tunnel(who.Tenant, who.Tier)
}

// watchExpiry ends the tunnel when its token expires, unless it is over already.
func (s *session) watchExpiry(who Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel.Err() == nil {
		s.expiry = time.AfterFunc(time.Until(who.Expires), s.expired)
	}
}

// add registers a session, unless the registry has closed meanwhile; its lane runs in any case, to tell the sidecar.
func (r *Registry) add(s *session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s.tunnel.ID()] = s
	if r.draining != nil {
		s.tunnel.SendGoAway(*r.draining)
	}
	r.wg.Add(1) // reap gives it back
	return !r.closed
}

// resume carries a tunnel on. Whether a tunnel exists, is another tenant's, or was proven wrongly makes no difference to
// the answer.
func (r *Registry) resume(hs *link.Handshake, id link.ID, who Identity, peer string, log *slog.Logger) (*session, *link.Lane, error) {
	log = log.With(logging.FieldTunnel, id.String())
	unknown := errs.New(errs.TunnelUnknown, "there is no tunnel %s to resume here", id.String())
	r.mu.Lock()
	s, ok := r.sessions[id]
	r.mu.Unlock()
	if !ok {
		r.lost.Inc()
		r.resumeRefused(id, who, peer, unknown)
		return nil, nil, unknown
	}
	if was := s.who.Identity(); !was.same(who) {
		r.refused.Inc()
		r.cfg.Opener.log.Say(log, slog.LevelWarn, who.Tenant, "resume refused: the tunnel belongs to another identity", "owner_tenant", was.Tenant)
		r.resumeRefused(id, who, peer, errs.New(errs.TunnelUnknown, "the tunnel belongs to another identity, of tenant %s", was.Tenant))
		return nil, nil, unknown
	}
	lane, err := hs.Resume(s.tunnel)
	if err != nil {
		r.refused.Inc()
		r.resumeRefused(id, who, peer, err)
		if errors.Is(err, errs.TunnelUnknown) {
			r.cfg.Opener.log.Say(log, slog.LevelWarn, errs.CodeOf(err).String()+who.Tenant, "resume refused", logging.Error(err)...)
			return nil, nil, unknown
		}
		return nil, nil, err
	}
	r.resumed.Inc()
	s.peer.Store(&peer)
	s.take(who)
	err = r.cfg.Revoked(who) // a revocation that came since the token was verified has not met it here
	s.telling.Lock()
	if unrecorded := s.record(audit.Resume, err); err == nil {
		err = unrecorded
	}
	s.telling.Unlock()
	if err != nil {
		s.tunnel.Close(err) // the lane runs all the same, to tell the sidecar
	}
	s.log.Info("tunnel resumed", "epoch", s.tunnel.Stats().Epoch)
	return s, lane, nil
}

// resumeRefused records that somebody asked for a tunnel that is gone or not theirs, or proved it wrongly.
func (r *Registry) resumeRefused(id link.ID, who Identity, peer string, err error) {
	_ = r.cfg.Audit.Record(about(who, audit.Event{Action: audit.Resume, Result: audit.Refused, Client: peer, Tunnel: id.String(), Code: errs.CodeOf(err), Detail: detail(err)}))
}

// event is an act of the tunnel's sidecar.
func (s *session) event(action audit.Action, result audit.Result) audit.Event {
	return about(s.who.Identity(), audit.Event{Action: action, Result: result, Client: *s.peer.Load(), Tunnel: s.id()})
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
	ask := Ask{Who: s.who, Route: req.Route, Priority: req.Priority, Client: *s.peer.Load(), App: req.Peer, Tunnel: s.id(), Stream: streamID(st), Trace: link.TraceID(req.Trace)}
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
