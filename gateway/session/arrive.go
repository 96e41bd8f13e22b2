package session

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

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
