package link

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A heartbeat that is changed holds at once, on the lane there is, and on the next one.
//
// Verifies: R6.1
func TestHeartbeatChangesOnALivingLane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		time.AfterFunc(65*time.Second, func() { p.tun.SetHeartbeat(10 * time.Second) })
		time.AfterFunc(95*time.Second, func() { p.tun.SetHeartbeat(25 * time.Second) })
		at := p.pings(150 * time.Second)
		want := []time.Duration{0, 30, 60, 70, 80, 90, 115, 140}
		for i := range want {
			want[i] *= time.Second
		}
		require.Equal(t, want, at)
		require.Equal(t, 25*time.Second, p.tun.Stats().Heartbeat)
		isCode(t, errs.LaneLost, <-p.ran)
		p.tun.Close(nil)
		p.tun.Wait()
	})
}

func TestHeartbeatBeforeTheLaneRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		pair := newMemPair()
		tun := newTunnel(Config{}.withDefaults(), true, testLimits)
		l := tun.newLane(pair.client, 1, true)
		tun.attach(l)
		tun.SetHeartbeat(4 * time.Second)
		p := &played{peer: &peer{t: t, conn: pair.server}, tun: tun, lane: l, ran: run(l)}
		require.Equal(t, []time.Duration{0, 4 * time.Second, 8 * time.Second}, p.pings(11*time.Second))
		<-p.ran
		tun.Close(nil)
		tun.Wait()
	})
}

// A shorter heartbeat asks more often, but waits for an answer as long as before: a slow peer is not cut for it.
//
// Verifies: R6.2
func TestAShortHeartbeatIsAsPatient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		p.tun.SetHeartbeat(2 * time.Second)
		for range 3 {
			h, _ := p.until(typePing)
			pause(14 * time.Second)
			p.send(header{kind: typePong, offset: h.offset}, nil)
		}
		synctest.Wait()
		require.Empty(t, p.ran)
		st := p.tun.Stats()
		require.Equal(t, uint64(1), st.PingsLost, "answered, but too late to count, until that is known as the round trip")
		require.Equal(t, uint64(2), st.PingsAnswered)
		require.Equal(t, 14*time.Second, st.LastRTT)
		start := time.Now()
		isCode(t, errs.LaneDead, <-p.ran)
		require.LessOrEqual(t, time.Since(start), 17*time.Second, "a heartbeat and a half of the configured one")
		require.Equal(t, uint64(2), p.tun.Stats().PingsLost)
		p.tun.Close(nil)
		p.tun.Wait()
	})
}

// Heartbeats are counted, and for how long one has been without an answer.
//
// Verifies: R2.8
func TestHeartbeatsAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		for range 3 {
			h, _ := p.until(typePing)
			pause(20 * time.Millisecond)
			p.send(header{kind: typePong, offset: h.offset}, nil)
		}
		synctest.Wait()
		st := p.tun.Stats()
		require.Equal(t, [3]uint64{3, 3, 0}, [3]uint64{st.PingsSent, st.PingsAnswered, st.PingsLost})
		require.Equal(t, 20*time.Millisecond, st.LastRTT)
		require.Zero(t, st.Silent)
		require.Equal(t, 29980*time.Millisecond, st.Survived)

		p.until(typePing)
		pause(3 * time.Second)
		require.Equal(t, 3*time.Second, p.tun.Stats().Silent)
		in := p.lane.conn.(*memConn).in // bytes that are no frame yet
		in.mu.Lock()
		in.received++
		in.mu.Unlock()
		require.Zero(t, p.tun.Stats().Silent)
		pause(40 * time.Second)
		st = p.tun.Stats()
		require.Equal(t, uint64(4), st.PingsAnswered, "any sign of life is an answer")
		require.Zero(t, st.PingsLost)
		p.stop()
	})
}

// A lane tells for how long it carried nothing before it was lost.
func TestALaneTellsHowQuietItWas(t *testing.T) {
	cases := []struct {
		name string
		live func(*played)
		want time.Duration
	}{
		{"cut between two heartbeats", func(p *played) {
			h, _ := p.until(typePing)
			p.send(header{kind: typePong, offset: h.offset}, nil)
			pause(20 * time.Second)
			p.conn.Abort()
		}, 20 * time.Second},
		{"after traffic of the peer", func(p *played) {
			h, _ := p.until(typePing)
			p.send(header{kind: typePong, offset: h.offset}, nil)
			pause(7 * time.Second)
			p.send(header{kind: typePing, offset: 9}, nil)
			pause(13 * time.Second)
			p.conn.Abort()
		}, 13 * time.Second},
		{"cut by the heartbeat", func(p *played) {
			h, _ := p.until(typePing)
			p.send(header{kind: typePong, offset: h.offset}, nil)
			p.until(typePing)
			p.conn.Abort()
		}, 30 * time.Second},
		{"silent since", func(p *played) {
			h, _ := p.until(typePing)
			p.send(header{kind: typePong, offset: h.offset}, nil)
			p.until(typePing)
		}, 30 * time.Second},
		{"something was under way", func(p *played) {
			h, _ := p.until(typePing)
			p.send(header{kind: typePong, offset: h.offset}, nil)
			pause(20 * time.Second)
			s, err := p.tun.Open(OpenRequest{Route: "git"})
			require.NoError(p.t, err)
			_, err = s.Write([]byte("x"))
			require.NoError(p.t, err)
			synctest.Wait()
			p.conn.Abort()
		}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := playGateway(t, Config{})
				c.live(p)
				<-p.ran
				require.Equal(t, c.want, p.lane.Quiet())
				p.tun.Close(nil)
				p.tun.Wait()
			})
		})
	}
}
