package session_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

func TestATunnelAndItsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		st := s.open(t)
		_, err := st.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(got))
		other := s.open(t)
		synctest.Wait()

		list := w.List()
		require.Len(t, list, 1)
		info := list[0]
		assert.Equal(t, s.Name(), info.ID)
		assert.Equal(t, "payments/orders", info.Identity.Tenant)
		assert.True(t, info.Attached)
		assert.Equal(t, "192.0.2.1", info.Peer)
		assert.Equal(t, 1, info.Stats.Streams)
		assert.EqualValues(t, 2, info.Stats.Opened)
		assert.Equal(t, session.Counts{Tunnels: 1, Streams: 1}, w.Counts())
		assert.Equal(t, [2]int{1, 1}, w.limits.held())
		for _, line := range []string{"fairlead_gateway_tunnels 1", "fairlead_gateway_streams 1", "fairlead_gateway_tunnels_detached 0", "fairlead_gateway_streams_opened_total 2"} {
			assert.True(t, w.metric(line), line)
		}

		other.Reset(nil)
		s.leave()
		synctest.Wait()
		assert.Empty(t, w.List())
		assert.Equal(t, [2]int{}, w.limits.held())
		for _, line := range []string{"tunnel connected", "stream opened", "stream ended", "tunnel ended", "tunnel=" + s.Name(), "tenant=payments/orders", "app=app:1"} {
			assert.Contains(t, w.log.String(), line)
		}
		w.close()
	})
}

func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		st := s.open(t)
		s.cut()
		synctest.Wait()
		assert.False(t, w.List()[0].Attached)
		_, err := st.Write([]byte("written while nobody listened"))
		require.NoError(t, err)
		pass(ttl - time.Second)
		require.NoError(t, w.resume(s, alice()))
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, "written while nobody listened", string(got))
		pass(2 * ttl)
		assert.Len(t, w.List(), 1, "the time of the lost lane is forgotten")
		assert.True(t, w.metric(`fairlead_gateway_resumes_total{kind="same"} 1`))
		s.leave()
		w.close()
	})
}

func TestNobodyElseResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		s.cut()
		strangers := map[string]func(*session.Identity){
			"tenant":  func(i *session.Identity) { i.Tenant = "payments/other" },
			"subject": func(i *session.Identity) { i.Subject = "mallory" },
			"issuer":  func(i *session.Identity) { i.Issuer = "https://elsewhere.test" },
		}
		for what, change := range strangers {
			who := alice()
			change(&who)
			err := w.resume(s, who) // even with the tunnel's key
			assert.ErrorIs(t, err, errs.TunnelUnknown, what)
			assert.NotContains(t, err.Error(), "payments", what)
		}
		assert.True(t, w.metric("fairlead_gateway_resumes_refused_total 3"))
		assert.Contains(t, w.log.String(), "belongs to another identity")
		assert.Len(t, w.List(), 1, "the tunnel is unharmed")
		require.NoError(t, w.resume(s, alice()))
		s.leave()
		synctest.Wait()

		err := w.resume(s, alice())
		assert.ErrorIs(t, err, errs.TunnelUnknown, "what is gone is answered alike")
		w.close()
	})
}

// Verifies: R1.6
func TestStaleTunnelsAreReclaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		st := s.open(t)
		s.cut()
		lost := time.Now()
		pass(ttl - time.Second)
		assert.Equal(t, session.Counts{Tunnels: 1, Detached: 1, Streams: 1}, w.Counts())
		pass(time.Second)
		synctest.Wait()
		assert.Equal(t, session.Counts{}, w.Counts())
		assert.Equal(t, ttl, time.Since(lost))
		assert.Equal(t, [2]int{}, w.limits.held())
		assert.ErrorIs(t, w.resume(s, alice()), errs.TunnelUnknown)
		assert.Contains(t, w.log.String(), "FL-N109")
		st.Reset(nil)
		s.Close(nil)
		w.close()
	})
}

func TestASilentPeerIsFoundAndReclaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		conn := w.dial(alice())
		_, _, err := link.Connect(context.Background(), conn, link.Config{}) // its lane is never run
		require.NoError(t, err)
		synctest.Wait()
		assert.Equal(t, session.Counts{Tunnels: 1}, w.Counts())
		pass(45 * time.Second)
		synctest.Wait()
		assert.Equal(t, session.Counts{Tunnels: 1, Detached: 1}, w.Counts())
		pass(ttl)
		synctest.Wait()
		assert.Equal(t, session.Counts{}, w.Counts())
		w.close()
	})
}

func TestATokenThatIsNotRenewedEndsItsTunnels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		who := alice()
		s := w.mustConnect(who)
		st := s.open(t)
		pass(time.Until(who.Expires) - time.Second)
		assert.NoError(t, s.Err())
		pass(2 * time.Second)
		synctest.Wait()
		assert.ErrorIs(t, s.Err(), errs.TokenExpired)
		assert.ErrorIs(t, st.Wait(), errs.TokenExpired)
		assert.ErrorIs(t, <-s.lane, errs.TokenExpired)
		w.close()
	})
}

// Verifies: R4.2
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next, other := alice(), alice()
		next.Expires = time.Now().Add(3 * time.Hour)
		other.Tenant = "payments/other"
		w := newWorld(t, func(c *session.Config, _ *session.OpenerConfig) {
			c.Verify = func(_ context.Context, token string, _ session.Identity) (session.Identity, error) {
				switch token {
				case "next":
					return next, nil
				case "other":
					return other, nil
				}
				return session.Identity{}, errs.New(errs.TokenInvalid, "who is that")
			}
		})
		s := w.mustConnect(alice())
		renew := func(token string) error {
			require.NoError(t, s.Renew(token))
			return <-s.renewed
		}
		assert.ErrorIs(t, renew("forged"), errs.TokenInvalid)
		assert.ErrorIs(t, renew("other"), errs.TokenInvalid)
		assert.Equal(t, "payments/orders", w.List()[0].Identity.Tenant)
		assert.NoError(t, renew("next"))
		assert.Equal(t, next.Expires, w.List()[0].Identity.Expires)
		pass(2 * time.Hour)
		synctest.Wait()
		assert.NoError(t, s.Err(), "the old expiry does not count any more")
		s.open(t)
		pass(2 * time.Hour)
		synctest.Wait()
		assert.ErrorIs(t, s.Err(), errs.TokenExpired)
		<-s.lane
		for _, secret := range []string{"forged", "other\"", "next"} {
			assert.NotContains(t, w.log.String(), "token="+secret)
		}
		w.close()
	})
}

func TestAResumeTakesTheNewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		pass(59 * time.Minute)
		s.cut()
		require.NoError(t, w.resume(s, alice()))
		pass(30 * time.Minute)
		synctest.Wait()
		assert.NoError(t, s.Err())
		s.leave()
		w.close()
	})
}

func TestTunnelsOverTheLimitAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.limits.tunnelErr = errs.New(errs.TunnelLimit, "three are enough")
		_, err := w.connect(alice())
		assert.ErrorIs(t, err, errs.TunnelLimit)
		synctest.Wait()
		assert.Empty(t, w.List())
		assert.Contains(t, w.log.String(), "FL-S409")
		w.close()
	})
}

func TestAHandshakeIsNotWaitedForForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		conn := w.dial(alice())
		start := time.Now()
		w.serves.Wait()
		assert.LessOrEqual(t, time.Since(start), 12*time.Second)
		assert.Contains(t, w.log.String(), "FL-P505")
		conn.Abort()
		w.close()
	})
}

// Verifies: R8.4, R8.8
func TestDrainWaitsForStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		st := s.open(t)
		assert.False(t, w.Draining())
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			w.Drain(context.Background(), 30*time.Second, 10*time.Second)
		}()
		notice := <-s.goAways
		assert.ErrorIs(t, notice.Reason, errs.Draining)
		assert.Equal(t, 30*time.Second, notice.Deadline)
		assert.Less(t, notice.Delay, 10*time.Second)
		assert.True(t, w.Draining())
		_, err := w.connect(alice())
		assert.ErrorIs(t, err, errs.Draining)

		s.cut() // a lane that is lost meanwhile is resumed, and learns it again
		require.NoError(t, w.resume(s, alice()))
		assert.ErrorIs(t, (<-s.goAways).Reason, errs.Draining)
		select {
		case <-drained:
			t.Error("drained with a stream open")
		default:
		}
		require.NoError(t, st.CloseWrite())
		_, err = io.ReadAll(st)
		require.NoError(t, err)
		<-drained
		s.leave()
		w.close()
	})
}

// Verifies: R8.3
func TestDrainEndsAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		st := s.open(t)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		start := time.Now()
		w.Drain(ctx, 30*time.Second, 0)
		assert.Equal(t, 30*time.Second, time.Since(start))
		w.close()
		assert.ErrorIs(t, st.Wait(), errs.DrainEnded)
		assert.ErrorIs(t, <-s.lane, errs.DrainEnded)
		_, err := w.connect(alice())
		assert.ErrorIs(t, err, errs.ShuttingDown)
		w.serves.Wait()
	})
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
			o.Policy = policy(func(string, string) error { <-release; return errs.New(errs.RouteForbidden, "no") })
		})
		s := w.mustConnect(alice())
		_, err := s.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		synctest.Wait()
		cause := errors.New("time is up")
		ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, cause)
		defer cancel()
		assert.ErrorIs(t, w.Close(ctx), cause)
		close(release)
		<-s.lane
		w.close()
	})
}

func TestAnOperatorEndsATunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s, other := w.mustConnect(alice()), w.mustConnect(alice())
		assert.Len(t, w.List(), 2)
		assert.False(t, w.End("unknown", errs.ShuttingDown))
		assert.True(t, w.End(s.Name(), errs.New(errs.ShuttingDown, "an operator ended the tunnel")))
		assert.ErrorIs(t, <-s.lane, errs.ShuttingDown)
		synctest.Wait()
		require.Len(t, w.List(), 1)
		assert.Equal(t, other.Name(), w.List()[0].ID)
		other.leave()
		w.close()
	})
}
