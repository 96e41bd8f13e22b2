package session_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

func revoked(id string, now *atomic.Bool) func(session.Identity) error {
	return func(who session.Identity) error {
		if now.Load() && who.TokenID == id {
			return errs.New(errs.TokenRevoked, "token %s was revoked", id)
		}
		return nil
	}
}

// A stream outside a tunnel has nothing else that a revocation would find: while its backend is being connected it is in
// no table yet.
func TestARevocationDuringAnOpenCounts(t *testing.T) {
	var now atomic.Bool
	r, conn := &records{}, newEcho()
	w := newWorld(t, func(c *session.Config, o *session.OpenerConfig) {
		audited(r)(c, o)
		o.Revoked = revoked("1", &now)
		o.Backends = backends(func(context.Context, string, string) (relay.Conn, error) {
			now.Store(true)
			return conn, nil
		})
	})
	_, err := w.Opener().Open(t.Context(), session.Ask{Who: session.NewBearer(alice()), Route: "git", Stream: "plain-1"}, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, errs.TokenRevoked)
	_, err = conn.Write([]byte("x"))
	assert.Error(t, err, "its backend connection is closed")
	assert.Empty(t, w.Opener().Streams())
	assert.Equal(t, []string{"open refused FL-A207 git"}, r.told())
	w.close()
}

// A token that is revoked between its check and its taking the place of the tunnel's is met by neither.
func TestARevocationDuringAResumeOrARenewalCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Bool
		now.Store(true)
		r, next := &records{}, alice()
		next.TokenID = "2"
		w := newWorld(t, func(c *session.Config, o *session.OpenerConfig) {
			audited(r)(c, o)
			c.Revoked = revoked("2", &now)
			c.Verify = func(context.Context, string, session.Identity) (session.Identity, error) { return next, nil }
		})
		s := w.mustConnect(alice())
		s.cut()
		synctest.Wait()
		require.NoError(t, w.resume(s, next))
		assert.ErrorIs(t, <-s.lane, errs.TokenRevoked)
		synctest.Wait()
		assert.Equal(t, []string{"connect allowed", "detach failed FL-N105", "resume refused FL-A207", "disconnect refused FL-A207"}, r.told())
		assert.Empty(t, w.List())

		s = w.mustConnect(alice())
		require.NoError(t, s.Renew("the token 2"))
		assert.ErrorIs(t, <-s.lane, errs.TokenRevoked)
		synctest.Wait()
		assert.Empty(t, w.List())
		w.close()
	})
}

// Verifies: R4.9
func TestWhereASidecarIsIsToldAnewWithEachOfItsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &records{}
		w := newWorld(t, audited(r))
		s := w.mustConnect(alice())
		s.cut()
		synctest.Wait()
		client, server := pair()
		w.serves.Go(func() { w.Serve(session.Arrival{Conn: server, Who: alice(), Client: "192.0.2.2"}) })
		lane, err := s.Resume(context.Background(), client)
		require.NoError(t, err)
		s.conn = client
		s.run(lane)
		st := s.open(t)
		assert.Equal(t, "192.0.2.2", w.List()[0].Peer)
		st.Reset(nil)
		synctest.Wait()
		s.leave()
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		var from []string
		for _, e := range r.all {
			from = append(from, string(e.Action)+" "+e.Client)
		}
		assert.Equal(t, []string{"connect 192.0.2.1", "detach 192.0.2.1", "resume 192.0.2.2", "open 192.0.2.2", "close 192.0.2.2", "disconnect 192.0.2.2"}, from)
		w.close()
	})
}

// For the race detector: who lists streams meets those whose open has not returned yet.
func TestStreamsAreListedWhileTheyOpen(t *testing.T) {
	w := newWorld(t, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			o, err := w.Opener().Open(t.Context(), session.Ask{Who: session.NewBearer(alice()), Route: "git", Priority: link.Normal}, slog.New(slog.DiscardHandler))
			if assert.NoError(t, err) {
				o.Conn.Close()
				o.Over(nil)
			}
		}
	}()
	for open := true; open; {
		select {
		case <-done:
			open = false
		default:
			w.Opener().Streams()
		}
	}
	w.close()
}

// A cluster that answers slowly about each token must not make those behind it wait for all answers before theirs.
func TestManyAreCheckedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var all []*sidecar
		for range 40 {
			all = append(all, w.mustConnect(alice()))
		}
		start := time.Now()
		tunnels, _ := w.Enforce(func(session.Identity) error {
			pass(time.Second)
			return errs.New(errs.TokenRevoked, "its pod is gone")
		})
		assert.Equal(t, 40, tunnels)
		assert.Equal(t, 2*time.Second, time.Since(start), "32, then 8")
		for _, s := range all {
			assert.ErrorIs(t, <-s.lane, errs.TokenRevoked)
		}
		w.close()
	})
}
