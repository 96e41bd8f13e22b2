package link

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// pings are the times, since the start, of the PINGs that come within d; each is answered.
func (p *played) pings(d time.Duration) (at []time.Duration) {
	start := time.Now()
	timer := time.AfterFunc(d, p.conn.Abort)
	defer timer.Stop()
	for {
		h, _, err := p.recv()
		if err != nil {
			return at
		}
		if h.kind == typePing {
			at = append(at, time.Since(start))
			_ = p.try(header{kind: typePong, offset: h.offset}, nil)
		}
	}
}

// An idle lane is pinged once at its start, and then every 30 s.
//
// Verifies: R6.1
func TestIdleLaneIsPingedEachHeartbeat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{})
		at := p.pings(100 * time.Second)
		require.Equal(t, []time.Duration{0, 30 * time.Second, 60 * time.Second, 90 * time.Second}, at)
		isCode(t, errs.LaneLost, <-p.ran)
		p.tun.Close(nil)
		p.tun.Wait()
	})
}

// A link that goes silent while nothing is under way is noticed within 45 s, at whatever moment it dies.
//
// Verifies: R6.2
func TestDeadIdleLinkIsNoticedWithin45Seconds(t *testing.T) {
	for _, lived := range []time.Duration{time.Millisecond, 14 * time.Second, 29 * time.Second, 30*time.Second + time.Millisecond, 44 * time.Second, 50 * time.Second} {
		t.Run(lived.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				before := held.Load()
				n := memNetwork(t, Config{}, Config{})
				var pair *memPair
				n.dial = func() (Conn, Conn, func()) {
					p := newMemPair()
					if pair == nil {
						pair = p
					}
					return p.client, p.server, p.cut
				}
				tun := n.connect()
				pause(lived)
				pair.stall()
				start := time.Now()
				<-pair.broken
				require.LessOrEqual(t, time.Since(start), 45*time.Second)
				require.GreaterOrEqual(t, time.Since(start), 15*time.Second, "patience of half a heartbeat")
				pause(time.Second)
				require.Equal(t, uint64(1), tun.Stats().Resumes)
				n.finish(tun, before)
			})
		})
	}
}

// While bytes are in flight a silent link is noticed within 7 s.
//
// Verifies: R6.2
func TestDeadBusyLinkIsNoticedSoon(t *testing.T) {
	for _, quiet := range []time.Duration{time.Second, 20 * time.Second, 40 * time.Second} {
		t.Run(quiet.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := playGateway(t, Config{})
				s, err := p.tun.Open(OpenRequest{Route: "git"})
				require.NoError(t, err)
				go func() { // a peer that answers until the link dies
					for {
						h, _, err := p.recv()
						if err != nil {
							return
						}
						if h.kind == typePing {
							_ = p.try(header{kind: typePong, offset: h.offset}, nil)
						}
					}
				}()
				pause(quiet)
				p.conn.(*memConn).pair.stall()
				start := time.Now()
				_, err = s.Write([]byte("ls\n"))
				require.NoError(t, err)
				isCode(t, errs.LaneDead, <-p.ran)
				require.LessOrEqual(t, time.Since(start), 7*time.Second)
				require.GreaterOrEqual(t, time.Since(start), pulseDead)
				require.NoError(t, p.tun.Err(), "the tunnel can be resumed")
				p.tun.Close(nil)
				p.tun.Wait()
			})
		})
	}
}

// A peer that is slow but alive, bytes of a long message trickling in, is not taken for dead.
func TestBytesOfAnIncompleteMessageAreASignOfLife(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		s, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		_, err = s.Write([]byte("x"))
		require.NoError(t, err)
		in := p.lane.conn.(*memConn).in
		for range 60 { // no frame arrives, only bytes
			pause(time.Second)
			in.mu.Lock()
			in.received++
			in.mu.Unlock()
		}
		synctest.Wait()
		require.Empty(t, p.ran)
		p.stop()
	})
}

// The round trip is measured by the pings.
func TestRoundTripIsMeasured(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{})
		h, _ := p.until(typePing)
		pause(80 * time.Millisecond)
		p.send(header{kind: typePong, offset: h.offset + 1}, nil) // not the one asked for
		synctest.Wait()
		require.Less(t, p.tun.Stats().RTT, time.Millisecond)
		p.send(header{kind: typePong, offset: h.offset}, nil)
		synctest.Wait()
		require.Equal(t, 10*time.Millisecond, p.tun.Stats().RTT.Round(time.Millisecond), "an eighth of the sample")
		p.stop()
	})
}

// While an application takes nothing, with both directions of its stream full, other streams go on, and so do heartbeats.
func TestSlowApplicationStallsNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		n := memNetwork(t, Config{Accept: func(s *Stream) {
			s.Accept()
			if s.Request().Route == "stuck" {
				_, _ = s.Write(make([]byte, 1<<20)) // blocks: the sidecar's application reads nothing either
				_ = s.Wait()
				return
			}
			_ = readAll(s, 3, 2_000_000, 50_000)
			_ = sendAll(s, 4, 2_000_000, 50_000)
			_ = s.Wait()
		}}, Config{})
		tun := n.connect()
		stuck, err := tun.Open(OpenRequest{Route: "stuck", Priority: High})
		require.NoError(t, err)
		blocked := make(chan error, 1)
		go func() {
			_, err := stuck.Write(make([]byte, 1<<20))
			blocked <- err
		}()
		synctest.Wait()
		require.Empty(t, blocked, "credit holds the writer back")
		start := time.Now()
		s, err := tun.Open(OpenRequest{Route: "busy", Priority: Low})
		require.NoError(t, err)
		require.NoError(t, sendAll(s, 3, 2_000_000, 50_000))
		require.NoError(t, readAll(s, 4, 2_000_000, 50_000))
		require.NoError(t, s.Wait())
		require.Less(t, time.Since(start), 5*time.Second)
		pause(2 * time.Minute)
		require.Zero(t, tun.Stats().Resumes, "heartbeats were answered all the time")
		require.Less(t, tun.Stats().RTT, time.Second)
		stuck.Reset(nil)
		isCode(t, errs.Canceled, <-blocked)
		waitForgotten(t, tun)
		waitForgotten(t, n.gateway())
		n.finish(tun, before)
	})
}
