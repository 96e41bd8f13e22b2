package e2e

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed/fault"
	sidecarconfig "fairlead/sidecar/config"
)

// An idle link whose path drops everything without a word. Both sides notice within one and a half heartbeats, whatever
// the heartbeat is: with the longest and default one, 30 s, that is 45 s.
//
// Verifies: R6.2
func TestADeadLinkIsNoticedWhileIdle(t *testing.T) {
	require.Equal(t, 30*time.Second, sidecarconfig.Default().Tunnel.Heartbeat)
	for _, heartbeat := range []time.Duration{400 * time.Millisecond, 1200 * time.Millisecond} {
		t.Run(heartbeat.String(), func(t *testing.T) {
			w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), func(w *world) {
				w.gatewayConfig.Tunnel.Heartbeat, w.sidecarConfig.Tunnel.Heartbeat = heartbeat, heartbeat
			})
			settled := time.Now()
			await(t, "several heartbeats were answered", func() bool { return time.Since(settled) > 3*heartbeat })
			require.Empty(t, w.sidecar.logs.find("tunnel resuming"), "an idle link is no dead one")
			gone := time.Now()
			w.proxy.Blackhole()
			for side, e := range map[string]entry{
				"sidecar": w.sidecar.logs.wait(t, "tunnel resuming", "code", code(errs.LaneDead)),
				"gateway": w.gateway.logs.wait(t, "tunnel detached", "code", code(errs.LaneDead)),
			} {
				took := timeOf(t, e).Sub(gone)
				require.Less(t, took, heartbeat*3/2+time.Second, "%s: a heartbeat and a half, and what a busy machine adds", side)
			}
			w.proxy.Resume()
			w.waitReady()
			require.Equal(t, uint64(1), w.resumes())
		})
	}
}

// With bytes in flight a dead link is noticed much sooner than by the heartbeat.
//
// Verifies: R6.2
func TestADeadLinkIsNoticedSoonerWithBytesInFlight(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	c := w.dial("echo")
	require.NoError(t, roundTrip(c, "before"))
	gone := time.Now()
	w.proxy.Blackhole()
	_, err := io.WriteString(c, "lost")
	require.NoError(t, err)
	e := w.sidecar.logs.wait(t, "tunnel resuming", "code", code(errs.LaneDead))
	require.Less(t, timeOf(t, e).Sub(gone), 10*time.Second, "of 45 s while idle")
	w.proxy.Resume()
	got := make([]byte, len("lost"))
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, "lost", string(got))
}

// Pings of both kinds, WebSocket's and the link's, while four streams each way take all that the path carries, be it fast or
// narrow.
//
// Verifies: R6.3
func TestPingsAreAnsweredUnderLoad(t *testing.T) {
	const bound, pings = 5 * time.Second, 25
	for name, shape := range map[string]fault.Shape{"a fast path": {}, "a narrow path": {Bandwidth: 4 << 20}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, withoutSidecar(), withTarget("sink", newTarget(t, func(c halfCloser) { _, _ = io.Copy(io.Discard, c) })),
				withTarget("source", newTarget(t, sourceServer(1, 1<<40))))
			w.proxy.Shape(fault.Up, shape)
			w.proxy.Shape(fault.Down, shape)
			lane := w.dialRaw(ownTenant, time.Hour)
			sent := make(chan time.Time, 1)
			answered := make(chan time.Duration, 1)
			lane.ws.SetPongHandler(func(string) error {
				select {
				case at := <-sent:
					answered <- time.Since(at)
				default:
				}
				return nil
			})
			tun, _ := lane.rawTunnel(t, link.Config{Heartbeat: time.Second})
			var loads sync.WaitGroup
			var moved atomic.Int64
			for i := range 8 {
				s, err := tun.Open(link.OpenRequest{Route: []string{"sink", "source"}[i%2], Priority: link.Low})
				require.NoError(t, err)
				loads.Go(func() {
					if i%2 == 0 {
						_, _ = io.Copy(s, contentOf(9, 1<<40)) // ends with the tunnel
					} else {
						_, _ = io.Copy(countingWriter{&moved}, s)
					}
				})
			}
			await(t, "the load flows", func() bool { st := tun.Stats(); return st.BytesSent > 2<<20 && st.BytesReceived > 2<<20 })
			var longest time.Duration
			for range pings {
				sent <- time.Now()
				require.NoError(t, lane.ws.WriteControl(websocket.PingMessage, []byte("e2e"), time.Now().Add(bound)))
				select {
				case took := <-answered:
					longest = max(longest, took)
				case <-time.After(2 * bound):
					t.Fatal("a ping is not answered")
				}
			}
			st := tun.Stats()
			assert.True(t, st.Attached, "every ping of the link was answered in time, or its lane would be gone")
			assert.Less(t, st.RTT, bound)
			assert.Less(t, longest, bound)
			t.Logf("longest ping %v, the link's round trip %v, %d MiB up, %d MiB down meanwhile", longest, st.RTT, st.BytesSent>>20, moved.Load()>>20)
			tun.Close(nil)
			loads.Wait()
		})
	}
}

type countingWriter struct{ n *atomic.Int64 }

func (c countingWriter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// A pool begins with one tunnel, grows as streams come, and spreads them, so that a cut of one is not felt by all.
//
// Verifies: R6.5
func TestThePoolGrowsAndSpreads(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)),
		withSidecar(func(c *sidecarconfig.Config) { c.Tunnels = sidecarconfig.Tunnels{Min: 1, Max: 3} }))
	require.Len(t, w.status().Tunnels, 1)
	var open []halfCloser
	dial := func(n int) {
		for range n {
			c := w.dial("echo")
			require.NoError(t, roundTrip(c, "hello"))
			open = append(open, c)
		}
	}
	dial(20)
	await(t, "a second tunnel", func() bool { return len(w.connected()) >= 2 })
	dial(30)
	await(t, "a third", func() bool { return len(w.connected()) == 3 })
	dial(30)
	require.Len(t, w.connected(), 3, "which is the limit")
	total := 0
	for _, tun := range w.status().Tunnels {
		require.GreaterOrEqual(t, tun.Streams, 10, "%+v", w.status().Tunnels)
		total += tun.Streams
	}
	require.Equal(t, 80, total)

	var pings errgroup.Group
	w.proxy.Cut()
	for i, c := range open {
		pings.Go(func() error { return roundTrip(c, fmt.Sprintf("%d survives", i)) })
	}
	require.NoError(t, pings.Wait())
	require.GreaterOrEqual(t, w.resumes(), uint64(3))
}

// Bulk both ways in low priority, on a path so narrow that what is queued takes seconds, and somebody types meanwhile. There
// is one tunnel, so that nothing else helps.
//
// Verifies: R5.2
func TestBulkDoesNotFreezeAShell(t *testing.T) {
	const keystrokes, narrow = 40, 2 << 20
	w := newWorld(t, withTunnels(1), withTarget("echo", newTarget(t, echoServer)),
		withTarget("sink", newTarget(t, func(c halfCloser) { _, _ = io.Copy(io.Discard, c) })), withTarget("source", newTarget(t, sourceServer(1, 1<<40))),
		withListener("shell", "echo", "high"), withListener("upload", "sink", "low"), withListener("download", "source", "low"))
	w.proxy.Shape(fault.Up, fault.Shape{Bandwidth: narrow})
	w.proxy.Shape(fault.Down, fault.Shape{Bandwidth: narrow})
	var bulk sync.WaitGroup
	up, down := w.dial("upload"), w.dial("download")
	bulk.Go(func() { _, _ = io.Copy(up, contentOf(1, 1<<40)) }) // end when they are closed
	bulk.Go(func() { _, _ = io.Copy(io.Discard, down) })
	defer bulk.Wait()
	defer down.Close()
	defer up.Close()
	await(t, "bulk fills the path", func() bool {
		st := w.status().Tunnels[0]
		return st.Sent > narrow && st.Received > narrow
	})
	shell := w.dial("shell")
	var took []time.Duration
	for range keystrokes {
		at := time.Now()
		require.NoError(t, roundTrip(shell, "x"))
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	t.Logf("keystrokes: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	require.Less(t, took[len(took)/2], 500*time.Millisecond)
	require.Less(t, took[len(took)-1], 2*time.Second)
}
