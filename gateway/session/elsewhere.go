package session

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// Peers brings a sidecar's connection to the replica that owns its tunnel.
type Peers interface {
	// Bring asks a replica to go on with a handshake. Its ID is that of the process that is meant; empty: whoever has its
	// address. Then a.Conn is the peers', and carry copies its bytes both ways until either end is closed or ctx
	// ends. With an error a.Conn is still the caller's, and usable to say so: errs.OwnerUnreachable and errs.PeerRefused when
	// that replica could not be asked, errs.OwnerGone when another process answers, errs.TunnelUnknown when it has no such
	// tunnel for this identity, or what else it answered.
	Bring(ctx context.Context, to store.Replica, a Arrival, hs *link.Handshake) (carry func(context.Context) error, err error)
}

// reach bounds how long an owner may take to answer.
const reach = 2 * time.Second

// elsewhere resumes a tunnel that does not live here, at the replica that owns it, or says what has become of it.
func (r *Registry) elsewhere(ctx context.Context, hs *link.Handshake, id link.ID, a Arrival, log *slog.Logger) (run func(), err error) {
	carry, alive, err := r.seek(ctx, hs, id, a, log)
	if err != nil {
		if alive {
			r.refused.Inc()
		} else {
			r.gone.Inc()
			r.lost.Inc()
		}
		r.resumeRefused(id, a, err)
		return nil, err
	}
	r.forwarded.Inc()
	return func() {
		if err := carry(r.ctx); err != nil {
			log.Info("relay ended", logging.Error(err)...)
		}
	}, nil
}

// seek finds the tunnel's owner and brings the connection there. With an error, alive says whether the tunnel is or may be still there.
func (r *Registry) seek(ctx context.Context, hs *link.Handshake, id link.ID, a Arrival, log *slog.Logger) (carry func(context.Context) error, alive bool, err error) {
	l := r.leases
	if l == nil || a.Via != "" { // who brings it has looked already
		return nil, false, unknown(id)
	}
	t, ok, err := l.find(ctx, id, a.Who.Tenant)
	switch {
	case errs.CodeOf(err) == errs.OwnerUnknown:
		return nil, true, err
	case err != nil || !ok: // an owner that could not reach the store has entered nothing
		carry, err = l.askAll(ctx, hs, id, err == nil, a, log)
	case t.Tenant != a.Who.Tenant || t.Subject != a.Who.Subject || t.Issuer != a.Who.Issuer:
		r.cfg.Opener.log.Say(log, slog.LevelWarn, a.Who.Tenant, "resume refused: the tunnel belongs to another identity", "owner_tenant", t.Tenant)
		return nil, true, unknown(id)
	case t.Lost != nil:
		err = lost(t)
	default:
		carry, err = l.askOwner(ctx, hs, t, a, log)
	}
	return carry, !gone(err), err
}

// find asks the store for a record, a few at a time: when all tunnels come at once, their number must not make the store look
// as if it did not answer. OwnerUnknown: it was not asked.
func (l *leases) find(ctx context.Context, id link.ID, tenant string) (store.Tunnel, bool, error) {
	give, err := l.finding.take(ctx, tenant)
	if err != nil {
		return store.Tunnel{}, false, err
	}
	defer give()
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	return l.store.Find(ctx, id.String())
}

// gone says whether an answer to a resume is for good.
func gone(err error) bool {
	switch errs.CodeOf(err) {
	case errs.TunnelUnknown, errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost:
		return true
	}
	return false
}

// lost is what is told of a tunnel that is over.
func lost(t store.Tunnel) error {
	switch t.Lost.Code {
	case errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost:
		return errs.New(t.Lost.Code, "%s", t.Lost.Reason)
	}
	return errs.New(errs.TunnelUnknown, "the tunnel ended at %s: %s %s", t.Name, t.Lost.Code, t.Lost.Reason)
}

// askOwner brings a connection to the owner of its tunnel. One that is gone or cannot be reached loses the tunnel, in the
// store first: nobody is told that a tunnel is lost that could still be resumed.
func (l *leases) askOwner(ctx context.Context, hs *link.Handshake, t store.Tunnel, a Arrival, log *slog.Logger) (func(context.Context) error, error) {
	if l.replaced(ctx, t) {
		return nil, l.fence(ctx, t, errs.OwnerGone, "replica "+t.Name+" has restarted, and its streams with it", log)
	}
	if l.r.cfg.Replicas.Peers == nil || t.Address == "" {
		return nil, l.fence(ctx, t, errs.OwnerUnreachable, "replica "+t.Name+" holds the tunnel, and there is no peer port to reach it", log)
	}
	carry, err := l.bring(ctx, hs, t, a)
	switch errs.CodeOf(err) {
	case 0:
		log.Info("tunnel resumed at another replica", "owner", t.Name)
		return carry, nil
	case errs.OwnerGone:
		return nil, l.fence(ctx, t, errs.OwnerGone, "replica "+t.Name+" has restarted, and its streams with it", log)
	case errs.TunnelUnknown: // it ended there just now, and has not left word yet
		return nil, errs.New(errs.TunnelUnknown, "the tunnel ended at %s", t.Name)
	case errs.OwnerUnreachable, errs.PeerRefused:
		log.Warn("the owner of a tunnel cannot be reached", append(logging.Error(err), "owner", t.Name, "address", t.Address)...)
		if l.alive(ctx, t) {
			return nil, l.fence(ctx, t, errs.OwnerUnreachable, "replica "+t.Name+" holds the tunnel and cannot be reached", log)
		}
		return nil, l.fence(ctx, t, errs.OwnerGone, "replica "+t.Name+" is gone, and its streams with it", log)
	}
	return nil, err
}

// fence gives a tunnel up, unless its owner has taken another lane since it was found: then the sidecar is to try again.
func (l *leases) fence(ctx context.Context, t store.Tunnel, code errs.Code, why string, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	now, fenced, err := l.store.Fence(ctx, t.ID, t.Epoch, store.Ending{Code: code, Reason: why, By: l.self.Name, At: l.r.cfg.Now()}, lostTTL)
	switch {
	case err != nil:
		return errs.Wrap(errs.OwnerUnknown, err, "%s, which the store could not be told", why)
	case fenced:
		log.Warn("a tunnel was given up", logging.FieldCode, code.String(), "owner", t.Name, logging.FieldReason, why, "streams", t.Streams)
		return errs.New(code, "%s", why)
	case now.Lost != nil:
		return lost(now)
	case now.ID == "": // the store was emptied just now: nobody could tell the owner, so it is to be looked for everywhere
		return errs.New(errs.OwnerUnknown, "%s, but the store has forgotten the tunnel meanwhile", why)
	}
	return errs.New(errs.OwnerUnknown, "replica %s holds the tunnel, cannot be reached from here, and has a newer connection of it", t.Name)
}

const (
	mostFinding = 32 // tunnels that the store is asked for at once
	// mostAsking bounds the tunnels that are looked for at every replica at once: an invented id costs each a handshake.
	mostAsking = 8
)

// askAll looks for a tunnel at every replica that was known last, because the store cannot be asked, or (complete) has no record of it.
func (l *leases) askAll(ctx context.Context, hs *link.Handshake, id link.ID, complete bool, a Arrival, log *slog.Logger) (func(context.Context) error, error) {
	give, err := l.asking.take(ctx, a.Who.Tenant)
	if err != nil {
		return nil, err
	}
	defer give()
	others, denied := 0, 0
	known := l.directory()
	for _, r := range append(slices.Clone(known.listed), known.missing...) {
		if r.ID == l.self.ID || r.Address == "" || l.r.cfg.Replicas.Peers == nil {
			continue
		}
		others++
		r.ID = "" // whoever has its address now: it may have been started anew since it was listed
		reaching, cancel := context.WithTimeout(ctx, reach)
		carry, err := l.r.cfg.Replicas.Peers.Bring(reaching, r, a, hs)
		cancel()
		switch errs.CodeOf(err) {
		case 0:
			log.Info("tunnel resumed at another replica, of which the store does not know", "owner", r.Name)
			return carry, nil
		case errs.OwnerUnreachable, errs.PeerRefused:
		case errs.TunnelUnknown, errs.OwnerGone:
			denied++
		default:
			return nil, err
		}
	}
	// Without the store, replicas may have come since it was read; the tunnel may be at one of them.
	if denied == others && (complete || others > 0 && l.r.cfg.Now().Sub(known.at) < unseen) {
		return nil, unknown(id)
	}
	return nil, errs.New(errs.OwnerUnknown, "the store does not know, and of %d other replicas that were known %d did not answer", others, others-denied)
}
