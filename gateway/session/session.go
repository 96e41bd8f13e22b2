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

	resumed, relayed, forwarded, refused, lost, cut *metrics.Counter
	rtt                                             *metrics.PrometheusHistogram
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

// Arrival is a connection that asks for a tunnel, and who has sent it.
type Arrival struct {
	Conn          link.Conn
	Who           Identity // what the token of the upgrade says
	Client        string   // network address of the sidecar
	Authorization string   // the header, for the replica that the tunnel may live at
	Via           string   // name of the replica that the connection reached first; empty: this one
}

// origin is where a tunnel's lane comes from.
type origin struct{ client, via string }

func (a Arrival) origin() *origin { return &origin{a.Client, a.Via} }

// Serve takes a new connection over: it performs the handshake, and leaves the connection to run as a lane in a goroutine
// of the registry, which keeps less stack than its caller needed to get here.
func (r *Registry) Serve(a Arrival) {
	r.receive(a, func(ctx context.Context, log *slog.Logger) (func(), error) { return r.handshake(ctx, a, log) })
}

// Receive is Serve for a connection that another replica has greeted, because the tunnel is this one's.
func (r *Registry) Receive(a Arrival, hs *link.Handshake) {
	r.receive(a, func(ctx context.Context, log *slog.Logger) (func(), error) {
		id, ok := hs.Tunnel()
		if !ok {
			return nil, errs.New(errs.ProtocolViolation, "a replica brought a handshake of no tunnel")
		}
		return r.resume(ctx, hs, id, a, log)
	})
}

func (r *Registry) receive(a Arrival, handshake func(context.Context, *slog.Logger) (run func(), err error)) {
	log := r.cfg.Logger.With(logging.FieldTenant, a.Who.Tenant, logging.FieldSubject, a.Who.Subject, logging.FieldPeer, a.Client)
	if a.Via != "" {
		log = log.With("via", a.Via)
	}
	if !r.enter() {
		refuse(a.Conn, errs.New(errs.ShuttingDown, "the gateway is shutting down"))
		return
	}
	defer r.wg.Done()
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Handshake)
	defer cancel()
	run, err := handshake(ctx, log)
	if err != nil {
		r.cfg.Opener.log.Say(log, slog.LevelWarn, errs.CodeOf(err).String()+a.Who.Tenant, "tunnel refused", logging.Error(err)...)
		refuse(a.Conn, err)
		return
	}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		run()
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

func (r *Registry) handshake(ctx context.Context, a Arrival, log *slog.Logger) (run func(), err error) {
	hs, err := link.Greet(ctx, a.Conn)
	if err != nil {
		return nil, err
	}
	if id, ok := hs.Tunnel(); ok {
		return r.resume(ctx, hs, id, a, log)
	}
	s, lane, err := r.accept(ctx, hs, a, log)
	if err != nil && s == nil { // else its end is recorded
		_ = r.cfg.Audit.Record(about(a.Who, audit.Event{Action: audit.Connect, Result: resultOf(err), Client: a.Client, Code: errs.CodeOf(err), Detail: detail(err)}))
	}
	if err != nil {
		return nil, err
	}
	return func() { s.run(lane) }, nil
}

// accept makes a new tunnel. With an error there is none, but if it had been made already, it is returned too.
func (r *Registry) accept(ctx context.Context, hs *link.Handshake, a Arrival, log *slog.Logger) (*session, *link.Lane, error) {
	who := a.Who
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
	s.from.Store(a.origin())
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
		r.leases.begin(ctx, s)
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

// resume carries a tunnel on, here or at the replica that has it. Whether a tunnel exists, is another tenant's, or was proven
// wrongly makes no difference to the answer.
func (r *Registry) resume(ctx context.Context, hs *link.Handshake, id link.ID, a Arrival, log *slog.Logger) (run func(), err error) {
	log = log.With(logging.FieldTunnel, id.String())
	s := r.find(id)
	if s == nil {
		return r.elsewhere(ctx, hs, id, a, log)
	}
	if err := s.mayResume(a, log); err != nil {
		return nil, err
	}
	lane, err := s.attach(ctx, hs)
	if err != nil {
		r.refused.Inc()
		r.resumeRefused(id, a, err)
		if errors.Is(err, errs.TunnelUnknown) {
			r.cfg.Opener.log.Say(log, slog.LevelWarn, errs.CodeOf(err).String()+a.Who.Tenant, "resume refused", logging.Error(err)...)
			return nil, unknown(id)
		}
		return nil, err
	}
	s.resumed(a, log)
	return func() { s.run(lane) }, nil
}

func unknown(id link.ID) error {
	return errs.New(errs.TunnelUnknown, "there is no tunnel %s to resume here", id.String())
}

func (r *Registry) find(id link.ID) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[id]
}

// Owns says whether a tunnel lives here and may be resumed by who; else the error that is to be told.
func (r *Registry) Owns(id link.ID, a Arrival) error {
	s := r.find(id)
	if s == nil {
		return unknown(id)
	}
	return s.mayResume(a, r.cfg.Logger.With(logging.FieldTunnel, id.String(), "via", a.Via))
}

// mayResume refuses whoever the tunnel does not belong to.
func (s *session) mayResume(a Arrival, log *slog.Logger) error {
	was := s.who.Identity()
	if was.same(a.Who) {
		return nil
	}
	s.r.refused.Inc()
	s.r.cfg.Opener.log.Say(log, slog.LevelWarn, a.Who.Tenant, "resume refused: the tunnel belongs to another identity", "owner_tenant", was.Tenant)
	s.r.resumeRefused(s.tunnel.ID(), a, errs.New(errs.TunnelUnknown, "the tunnel belongs to another identity, of tenant %s", was.Tenant))
	return unknown(s.tunnel.ID())
}

// attach makes the connection of a handshake the tunnel's lane, if the lease allows that.
func (s *session) attach(ctx context.Context, hs *link.Handshake) (*link.Lane, error) {
	if err := hs.Prove(s.tunnel); err != nil { // before the lease's epoch is raised
		return nil, err
	}
	if err := s.r.leases.raise(ctx, s, hs.Epoch()); err != nil {
		return nil, err
	}
	return hs.Resume(s.tunnel)
}

// resumed takes note of a new lane.
func (s *session) resumed(a Arrival, log *slog.Logger) {
	r := s.r
	if a.Via == "" {
		r.resumed.Inc()
	} else {
		r.relayed.Inc()
	}
	s.from.Store(a.origin())
	s.take(a.Who)
	err := r.cfg.Revoked(a.Who) // a revocation that came since the token was verified has not met it here
	s.telling.Lock()
	if unrecorded := s.record(audit.Resume, err); err == nil {
		err = unrecorded
	}
	s.telling.Unlock()
	if err != nil {
		s.tunnel.Close(err) // the lane runs all the same, to tell the sidecar
	}
	log.Info("tunnel resumed", "epoch", s.tunnel.Stats().Epoch)
}

// resumeRefused records that somebody asked for a tunnel that is gone or not theirs, or proved it wrongly.
func (r *Registry) resumeRefused(id link.ID, a Arrival, err error) {
	_ = r.cfg.Audit.Record(about(a.Who, audit.Event{Action: audit.Resume, Result: audit.Refused, Client: a.Client, Tunnel: id.String(), Code: errs.CodeOf(err), Detail: detail(err)}))
}

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
