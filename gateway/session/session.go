// Package session holds the gateway's tunnels: it makes them, runs their lanes, keeps them for a while when a lane is lost
// so that they can be resumed, and ends them.
package session

import (
	"context"
	"errors"
	"log/slog"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
)

// Config is what a Registry needs.
type Config struct {
	Link      link.Config   // of every tunnel; its callbacks are set here
	ResumeTTL time.Duration // how long a tunnel without a lane is held
	Handshake time.Duration // for the handshake of the link
	Opener    *Opener
	Limits    Limits
	Verify    func(ctx context.Context, token string) (Identity, error)
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
}

// session is one tunnel and who it belongs to.
type session struct {
	r       *Registry
	tunnel  *link.Tunnel
	who     atomic.Pointer[Identity]
	log     *slog.Logger
	peer    string
	since   time.Time
	release func()

	mu     sync.Mutex
	lanes  int         // running; a new one may start before the old one has ended
	expiry *time.Timer // the token's
	orphan *time.Timer // runs while there is no lane
}

// New makes a Registry.
func New(cfg Config) *Registry {
	ctx, end := context.WithCancel(context.Background())
	r := &Registry{cfg: cfg, ctx: ctx, end: end, sessions: map[link.ID]*session{},
		resumed: cfg.Metrics.NewCounter("fairlead_gateway_resumes_total"),
		refused: cfg.Metrics.NewCounter("fairlead_gateway_resumes_refused_total"),
		lost:    cfg.Metrics.NewCounter("fairlead_gateway_tunnels_lost_total"),
	}
	cfg.Metrics.NewGauge("fairlead_gateway_tunnels", func() float64 { return float64(r.count().Tunnels) })
	cfg.Metrics.NewGauge("fairlead_gateway_tunnels_detached", func() float64 { return float64(r.count().Detached) })
	cfg.Metrics.NewGauge("fairlead_gateway_streams", func() float64 { return float64(r.count().Streams) })
	cfg.Metrics.NewGauge("fairlead_gateway_window_bytes", func() float64 { return float64(cfg.Link.Budget.Used()) })
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
		log.Warn("tunnel refused", logging.Error(err)...)
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
		return r.resume(hs, id, who, log)
	}
	return r.accept(hs, who, peer, log)
}

// accept makes a new tunnel.
func (r *Registry) accept(hs *link.Handshake, who Identity, peer string, log *slog.Logger) (*session, *link.Lane, error) {
	r.mu.Lock()
	draining := r.draining != nil
	r.mu.Unlock()
	if draining {
		return nil, nil, errs.New(errs.Draining, "this gateway takes no new tunnels")
	}
	release, err := r.cfg.Limits.Tunnel(who.Tenant, who.Tier)
	if err != nil {
		return nil, nil, err
	}
	s := &session{r: r, peer: peer, since: r.cfg.Now(), release: release}
	s.who.Store(&who)
	cfg := r.cfg.Link
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
		}
	}
	_, lane, err := hs.Accept(cfg)
	if err != nil {
		return nil, nil, err
	}
	s.watchExpiry(who)
	s.log.Info("tunnel connected", "token_expires", who.Expires.UTC().Format(time.RFC3339))
	return s, lane, nil
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
func (r *Registry) resume(hs *link.Handshake, id link.ID, who Identity, log *slog.Logger) (*session, *link.Lane, error) {
	log = log.With(logging.FieldTunnel, id.String())
	unknown := errs.New(errs.TunnelUnknown, "there is no tunnel %s to resume here", id.String())
	r.mu.Lock()
	s, ok := r.sessions[id]
	r.mu.Unlock()
	if !ok {
		r.lost.Inc()
		return nil, nil, unknown
	}
	if was := s.who.Load(); was.Tenant != who.Tenant || was.Subject != who.Subject || was.Issuer != who.Issuer {
		r.refused.Inc()
		log.Warn("resume refused: the tunnel belongs to another identity", "owner_tenant", was.Tenant)
		return nil, nil, unknown
	}
	lane, err := hs.Resume(s.tunnel)
	if err != nil {
		r.refused.Inc()
		if errors.Is(err, errs.TunnelUnknown) {
			log.Warn("resume refused", logging.Error(err)...)
			return nil, nil, unknown
		}
		return nil, nil, err
	}
	r.resumed.Inc()
	s.take(who)
	s.log.Info("tunnel resumed", "epoch", s.tunnel.Stats().Epoch)
	return s, lane, nil
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes--
	if s.tunnel.Err() != nil || s.lanes > 0 {
		return
	}
	s.log.Info("tunnel detached", append(logging.Error(err), "held_for", s.r.cfg.ResumeTTL.String())...)
	s.orphan = time.AfterFunc(s.r.cfg.ResumeTTL, func() {
		if s.tunnel.Attached() { // resumed at the last moment; its lane starts the time anew
			return
		}
		s.r.lost.Inc()
		s.tunnel.Close(errs.New(errs.TunnelLost, "no lane came within %v", s.r.cfg.ResumeTTL))
	})
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
	st := s.tunnel.Stats()
	s.log.Info("tunnel ended", append(logging.Error(s.tunnel.Err()), "streams", st.Opened, "sent", st.BytesSent, "received", st.BytesReceived,
		"resumes", st.Resumes, "replayed", st.BytesReplayed)...)
}

// take replaces the identity by that of a newer token of the same subject.
func (s *session) take(who Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who.Store(&who)
	if s.expiry != nil {
		s.expiry.Reset(time.Until(who.Expires))
	}
}

func (s *session) expired() {
	who := s.who.Load()
	if s.r.cfg.Now().Before(who.Expires) { // renewed meanwhile, or the clock was set
		s.mu.Lock()
		defer s.mu.Unlock()
		s.expiry.Reset(time.Until(who.Expires))
		return
	}
	s.tunnel.Close(errs.New(errs.TokenExpired, "the token expired at %s and was not renewed", who.Expires.UTC().Format(time.RFC3339)))
}

// renew takes a renewed token in-band: it must speak for the same subject.
func (s *session) renew(token string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(s.r.ctx, s.r.cfg.Handshake)
	defer cancel()
	who, err := s.r.cfg.Verify(ctx, token)
	was := s.who.Load()
	if err == nil && (who.Tenant != was.Tenant || who.Subject != was.Subject || who.Issuer != was.Issuer) {
		err = errs.New(errs.TokenInvalid, "the renewed token is for another identity than the tunnel's")
	}
	if err != nil {
		s.log.Warn("token renewal refused", logging.Error(err)...)
		return time.Time{}, err
	}
	s.take(who)
	s.log.Info("token renewed", "token_expires", who.Expires.UTC().Format(time.RFC3339))
	return who.Expires, nil
}

// serve connects one stream and lets it be carried until it is over.
func (s *session) serve(st *link.Stream) {
	req := st.Request()
	log := s.log.With(streamAttrs(st)...)
	ctx, stop := st.Opening(s.r.ctx)
	opened, err := s.r.cfg.Opener.Open(ctx, *s.who.Load(), req.Route, log)
	stop()
	if err != nil {
		st.Reset(err)
		return
	}
	st.Accept()
	start := time.Now()
	s.r.wg.Add(1) // reap, which waits for this function, still holds it
	relay.Start(st, opened.Conn, func(err error) {
		defer s.r.wg.Done()
		opened.Release()
		s.ended(st, start, err)
	})
}

func streamAttrs(st *link.Stream) []any {
	req := st.Request()
	attrs := []any{logging.FieldStream, strconv.FormatUint(uint64(st.ID()), 10), "app", req.Peer}
	if req.Trace != "" {
		attrs = append(attrs, logging.FieldTrace, link.TraceID(req.Trace))
	}
	return attrs
}

func (s *session) ended(st *link.Stream, start time.Time, err error) {
	sent, received := st.Totals()
	attrs := append(streamAttrs(st), logging.FieldRoute, st.Request().Route, "sent", sent, "received", received, "duration_ms", time.Since(start).Milliseconds())
	if err != nil {
		s.log.Warn("stream ended", append(attrs, logging.Error(err)...)...)
		return
	}
	s.log.Info("stream ended", attrs...)
}

// Info describes a tunnel.
type Info struct {
	ID       string    `json:"id"`
	Tenant   string    `json:"tenant"`
	Subject  string    `json:"subject"`
	Peer     string    `json:"peer"`
	State    string    `json:"state"` // connected or detached
	Since    time.Time `json:"since"`
	Expires  time.Time `json:"token_expires"`
	Streams  int       `json:"streams"`
	Opened   uint64    `json:"opened"`
	Sent     uint64    `json:"bytes_sent"`
	Received uint64    `json:"bytes_received"`
	Replayed uint64    `json:"bytes_replayed"`
	Resumes  uint64    `json:"resumes"`
	RTT      float64   `json:"rtt_ms"`
}

// List describes the tunnels, oldest first.
func (r *Registry) List() []Info {
	list := []Info{}
	for _, s := range r.snapshot() {
		st, who := s.tunnel.Stats(), s.who.Load()
		state := "connected"
		if !st.Attached {
			state = "detached"
		}
		list = append(list, Info{ID: s.id(), Tenant: who.Tenant, Subject: who.Subject, Peer: s.peer, State: state, Since: s.since, Expires: who.Expires,
			Streams: st.Streams, Opened: st.Opened, Sent: st.BytesSent, Received: st.BytesReceived, Replayed: st.BytesReplayed, Resumes: st.Resumes,
			RTT: float64(st.RTT.Microseconds()) / 1000})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Since.Before(list[j].Since) })
	return list
}

func (r *Registry) snapshot() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*session, 0, len(r.sessions))
	for _, s := range r.sessions {
		all = append(all, s)
	}
	return all
}

// Counts of a registry.
type Counts struct{ Tunnels, Detached, Streams int }

func (r *Registry) count() (c Counts) {
	for _, s := range r.snapshot() {
		st := s.tunnel.Stats()
		c.Tunnels++
		c.Streams += st.Streams
		if !st.Attached {
			c.Detached++
		}
	}
	return c
}

// Counts counts tunnels and streams.
func (r *Registry) Counts() Counts { return r.count() }

// End ends one tunnel with err, and says whether it was there.
func (r *Registry) End(id string, err error) bool {
	for _, s := range r.snapshot() {
		if s.id() == id {
			s.tunnel.Close(err)
			return true
		}
	}
	return false
}
