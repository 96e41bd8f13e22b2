package link

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// The notice of a drain reaches the sidecar, also when the lane that carried it breaks or there is none; what it says of
// time is what is left. Its callback may use the tunnel.
//
// Verifies: R8.8
func TestGoAwayReachesTheSidecarOverEachLane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		notices := make(chan GoAway, 4)
		n := memNetwork(t, Config{}, Config{})
		var tun *Tunnel
		n.client.GoAway = func(g GoAway) {
			_ = tun.Stats()
			notices <- g
		}
		tun = n.connect()
		n.gateway().SendGoAway(GoAway{Deadline: 30 * time.Second, Delay: 4 * time.Second, Where: "wss://b.example/"})
		g := <-notices
		isCode(t, errs.Draining, g.Reason)
		require.Equal(t, 30*time.Second, g.Deadline)
		require.Equal(t, 4*time.Second, g.Delay)
		require.Equal(t, "wss://b.example/", g.Where)
		pause(5 * time.Second)
		n.cutLane()
		g = <-notices
		require.InDelta(t, 25*time.Second, g.Deadline, float64(time.Second))
		require.Zero(t, g.Delay)
		n.finish(tun, before)
	})
}

// A renewed token is checked while the lane goes on; of several that come meanwhile the newest is checked and answered.
// A refusal carries its code and does not end the tunnel.
//
// Verifies: R4.2
func TestRenewedTokens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		var mu sync.Mutex
		var checked []string
		checking := make(chan struct{})
		answers := make(chan error, 4)
		n := memNetwork(t, Config{Renew: func(token string) (time.Time, error) {
			mu.Lock()
			checked = append(checked, token)
			first := len(checked) == 1
			mu.Unlock()
			if first {
				<-checking
			}
			switch token {
			case "bad":
				return time.Time{}, errs.New(errs.TokenExpired, "it expired")
			case "faulty":
				panic("a fault")
			}
			return time.Now().Add(time.Hour), nil
		}}, Config{Renewed: func(err error) { answers <- err }})
		tun := n.connect()
		for _, token := range []string{"one", "two", "three"} {
			require.NoError(t, tun.Renew(token))
			synctest.Wait()
		}
		close(checking)
		require.NoError(t, <-answers)
		synctest.Wait()
		require.Equal(t, []string{"one", "three"}, checked)
		require.Empty(t, answers, "one answer, to the newest")

		require.NoError(t, tun.Renew("bad"))
		err := <-answers
		isCode(t, errs.TokenExpired, err)
		require.Equal(t, "it expired", errs.From(err).Message)
		require.NoError(t, tun.Renew("faulty"))
		isCode(t, errs.Panicked, <-answers)
		require.NoError(t, tun.Err())
		require.Error(t, tun.Renew(""))
		require.Error(t, tun.Renew(string(make([]byte, maxToken+1))))
		n.finish(tun, before)
	})
}

// The answer on the wire carries when the token expires; a gateway without a check refuses.
func TestAuthOnTheWire(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Renew: func(string) (time.Time, error) { return time.Unix(1800000000, 0), nil }})
		p.send(header{kind: typeAuth}, []byte("token"))
		h, b := p.expect(typeAuth)
		require.Equal(t, header{kind: typeAuth, flags: flagAnswer, offset: 1800000000}, h)
		require.Equal(t, make([]byte, 8), b)
		p.stop()
		p = playSidecar(t, Config{})
		p.send(header{kind: typeAuth}, []byte("token"))
		h, b = p.expect(typeAuth)
		f := fields{b: b}
		require.Zero(t, h.offset)
		isCode(t, errs.TokenInvalid, f.failure())
		p.stop()
	})
}

// Each way to end a tunnel tells the other side with RESET of stream 0 and then with the close frame that fits; both ends
// and all streams learn the code.
//
// Verifies: R6.7, R8.3
func TestTunnelsEndWithTheFittingCloseCode(t *testing.T) {
	for _, c := range []struct {
		err   error
		code  errs.Code
		close int
	}{
		{nil, errs.ShuttingDown, errs.CloseNormal},
		{errs.New(errs.ShuttingDown, "bye"), errs.ShuttingDown, errs.CloseGoingAway},
		{errs.New(errs.Draining, "restarting"), errs.Draining, errs.CloseRestart},
		{errs.New(errs.TokenExpired, "the token expired"), errs.TokenExpired, errs.CloseExpired},
		{errs.New(errs.TokenRevoked, "revoked"), errs.TokenRevoked, errs.CloseInvalid},
		{errors.New("a bug"), errs.Internal, errs.CloseInternal},
	} {
		t.Run(c.code.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := playSidecar(t, Config{Accept: func(s *Stream) { _ = s.Wait() }})
				p.tun.Close(c.err)
				h, b := p.until(typeReset)
				require.Zero(t, h.stream)
				f := fields{b: b}
				isCode(t, c.code, f.failure())
				closing := p.end()
				if c.close == errs.CloseNormal {
					isCode(t, errs.Canceled, closing)
					require.ErrorContains(t, closing, "1000")
				} else {
					isCode(t, c.code, closing)
				}
				require.Equal(t, c.close, map[bool]int{true: errs.CloseNormal, false: c.code.Info().Close}[c.err == nil])
				p.conn.Abort()
				isCode(t, c.code, <-p.ran)
				p.tun.Wait()
			})
		})
	}
}

// The side that is told of the tunnel's end waits for the close frame instead of cutting it off.
func TestTheEndOfATunnelIsHeardOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		s, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		p.until(typeOpen)
		p.send(header{kind: typeReset}, appendFailure(nil, errs.New(errs.Draining, "restarting")))
		isCode(t, errs.Draining, s.Wait())
		<-p.tun.Done()
		synctest.Wait()
		require.Empty(t, p.ran, "the lane waits for the close frame")
		p.conn.Close(errs.CloseRestart, "FL-S412 restarting")
		isCode(t, errs.Draining, <-p.ran)

		p = playGateway(t, Config{})
		start := time.Now()
		p.send(header{kind: typeReset}, appendFailure(nil, errs.New(errs.Draining, "restarting")))
		isCode(t, errs.Draining, <-p.ran)
		require.Equal(t, farewellTime, time.Since(start), "but not for ever")
	})
}

// A peer that takes nothing does not keep the end of a tunnel waiting.
func TestTheEndOfATunnelDoesNotWaitForAStalledPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{})
		p.conn.(*memConn).pair.stall()
		start := time.Now()
		p.tun.Close(errs.New(errs.TokenRevoked, "revoked"))
		isCode(t, errs.TokenRevoked, <-p.ran)
		require.LessOrEqual(t, time.Since(start), 2*farewellTime)
		p.tun.Wait()
	})
}
