package e2e

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// requireClose checks a close frame: its code, and a reason that begins with ours and goes on in words.
func requireClose(t *testing.T, closed *websocket.CloseError, want int, is errs.Code) {
	t.Helper()
	require.Equal(t, want, closed.Code, closed.Text)
	require.Truef(t, strings.HasPrefix(closed.Text, is.String()+" "), "%q begins with %s", closed.Text, is)
	require.Greater(t, len(strings.Fields(closed.Text)), 3, "%q is a sentence", closed.Text)
	require.LessOrEqual(t, len(closed.Text), 123, "RFC 6455 section 5.5")
}

// What a client can do wrong on a WebSocket, and what it is told.
//
// Verifies: R6.6, R6.7
func TestCloseCodesOfRefusals(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)),
		withGateway(func(c *gatewayconfig.Config) {
			c.Tiers[gatewayconfig.DefaultTier] = gatewayconfig.Tier{Tunnels: 1}
			c.Policy = []gatewayconfig.Rule{{Tenants: []string{"*"}, Routes: []string{"*"}}}
		}))
	big := make([]byte, 1<<20+1)
	big[0] = 0x80 | 0x7f // a kind that a receiver which does not know it ignores: only its size is wrong
	frame := func(kind byte, stream uint32, offset uint64) []byte {
		f := make([]byte, frameHeader)
		f[0] = kind
		binary.BigEndian.PutUint32(f[4:], stream)
		binary.BigEndian.PutUint64(f[8:], offset)
		return f
	}
	for name, c := range map[string]struct {
		do    func(t *testing.T, r *rawLane)
		close int
		code  errs.Code
	}{
		"nothing": {func(*testing.T, *rawLane) {}, errs.CloseProtocol, errs.HandshakeLate},
		"another version": {func(t *testing.T, r *rawLane) { r.send(t, hello(link.Version+1, link.ID{}, 0)) },
			errs.CloseProtocol, errs.VersionUnsupported},
		"text": {func(t *testing.T, r *rawLane) {
			require.NoError(t, r.ws.WriteMessage(websocket.TextMessage, []byte("hello")))
		},
			errs.CloseProtocol, errs.ProtocolViolation},
		"a frame that is none": {func(t *testing.T, r *rawLane) { r.send(t, []byte("hello")) }, errs.CloseProtocol, errs.ProtocolViolation},
		"a frame before HELLO": {func(t *testing.T, r *rawLane) { r.send(t, frame(frameData, 1, 0)) }, errs.CloseProtocol, errs.ProtocolViolation},
		"a tunnel that is not there": {func(t *testing.T, r *rawLane) { r.send(t, hello(link.Version, link.ID{1}, 2)) },
			errs.CloseUnknown, errs.TunnelUnknown},
		"a large message at first": {func(t *testing.T, r *rawLane) { r.send(t, big) }, errs.CloseTooBig, errs.MessageTooBig},
		"a large message later":    {func(t *testing.T, r *rawLane) { r.greet(t); r.send(t, big) }, errs.CloseTooBig, errs.MessageTooBig},
		"text later": {func(t *testing.T, r *rawLane) {
			r.greet(t)
			require.NoError(t, r.ws.WriteMessage(websocket.TextMessage, []byte("hi")))
		}, errs.CloseProtocol, errs.ProtocolViolation},
		"data of an unknown stream": {func(t *testing.T, r *rawLane) { r.greet(t); r.send(t, frame(frameData, 5, 0)) }, errs.CloseProtocol, errs.ProtocolViolation},
		"SYNC without a resume":     {func(t *testing.T, r *rawLane) { r.greet(t); r.send(t, frame(frameSync, 0, 0)) }, errs.CloseProtocol, errs.ProtocolViolation},
		"a kind that is unknown":    {func(t *testing.T, r *rawLane) { r.greet(t); r.send(t, frame(0x7f, 0, 0)) }, errs.CloseProtocol, errs.ProtocolViolation},
		"a normal end": {func(t *testing.T, r *rawLane) {
			r.greet(t)
			r.Close(errs.CloseNormal, "done")
		}, errs.CloseNormal, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := w.dialRaw("tenant-"+strings.ReplaceAll(name, " ", "-"), time.Hour)
			c.do(t, r)
			closed := r.closed(t)
			if c.code == 0 {
				require.Equal(t, c.close, closed.Code)
				return
			}
			requireClose(t, closed, c.close, c.code)
		})
	}
	t.Run("one tunnel too many", func(t *testing.T) {
		w.dialRaw("greedy", time.Hour).greet(t)
		r := w.dialRaw("greedy", time.Hour)
		r.send(t, hello(link.Version, link.ID{}, 0))
		requireClose(t, r.closed(t), errs.CloseLimit, errs.TunnelLimit)
	})
	t.Run("a token that expires", func(t *testing.T) {
		r := w.dialRaw("short", 2*time.Second)
		r.greet(t)
		requireClose(t, r.closed(t), errs.CloseExpired, errs.TokenExpired)
	})
	t.Run("an operator's end", func(t *testing.T) {
		r := w.dialRaw("ended", time.Hour)
		id, _ := r.greet(t)
		w.gateway.logs.wait(t, "tunnel connected", "tunnel", id.String())
		w.endTunnel(id.String())
		requireClose(t, r.closed(t), errs.CloseGoingAway, errs.ShuttingDown)
	})
	t.Run("a newer WebSocket", func(t *testing.T) {
		r := w.dialRaw("moved", time.Hour)
		id, key := r.greet(t)
		w.gateway.logs.wait(t, "tunnel connected", "tunnel", id.String())
		w.dialRaw("moved", time.Hour).resume(t, id, key, 2)
		requireClose(t, r.closed(t), errs.CloseDisplaced, errs.Displaced)
		r = w.dialRaw("moved", time.Hour)
		r.send(t, hello(link.Version, id, 3))
		requireClose(t, r.closed(t), errs.CloseUnknown, errs.TunnelUnknown)
	})
}

func (w *world) endTunnel(id string) {
	w.t.Helper()
	status, body := request(w.t, "DELETE", w.gateway.url("/api/tunnels/"+id), "")
	require.Less(w.t, status, 300, body)
}

// A message of exactly the limit is taken.
//
// Verifies: R6.6
func TestALargeMessageIsNotTooLarge(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	r := w.dialRaw(ownTenant, time.Hour)
	r.greet(t)
	large := make([]byte, 1<<20)
	large[0] = 0x80 | 0x7f
	r.send(t, large)
	ping := make([]byte, frameHeader)
	ping[0] = framePing
	r.send(t, ping)
	r.skipTo(t, framePong)
}

// A newer WebSocket takes a tunnel over, though nobody knew that the older one was lost, and streams go on. A proof that is
// wrong, or another tenant's, changes nothing, and neither learns whether there is such a tunnel.
//
// Verifies: R1.7
func TestANewerLaneDisplaces(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	first := w.dialRaw(ownTenant, time.Hour)
	tun, ended := first.rawTunnel(t, link.Config{})
	s, err := tun.Open(link.OpenRequest{Route: "echo"})
	require.NoError(t, err)
	echoOver(t, s, "over the first")

	forger := w.dialRaw(ownTenant, time.Hour)
	forger.send(t, hello(link.Version, tun.ID(), 99))
	requireClose(t, forger.closed(t), errs.CloseUnknown, errs.TunnelUnknown)
	stranger := w.dialRaw("stranger", time.Hour)
	_, err = tun.Resume(t.Context(), stranger)
	var refused *websocket.CloseError
	require.ErrorAs(t, err, &refused)
	requireClose(t, refused, errs.CloseUnknown, errs.TunnelUnknown)
	echoOver(t, s, "as before")

	second := w.dialRaw(ownTenant, time.Hour)
	lane, err := tun.Resume(t.Context(), second)
	require.NoError(t, err)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = lane.Run()
	}()
	echoOver(t, s, "over the second")
	require.Error(t, <-ended, "the first is left")
	e := w.gateway.logs.wait(t, "tunnel resumed")
	require.Equal(t, tun.Name(), e.str("tunnel"))
	tun.Close(nil)
	<-ran
}

// echoOver makes a round trip over a stream.
func echoOver(t *testing.T, s *link.Stream, text string) {
	t.Helper()
	_, err := io.WriteString(s, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(s, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// The sidecar's own end of a WebSocket: it leaves in order, and the other side can tell.
//
// Verifies: R8.3
func TestTheSidecarLeavesInOrder(t *testing.T) {
	g := newFakeGateway(t)
	w := newWorld(t, withPlaintext(), withoutWaiting(), withTarget("echo", newTarget(t, echoServer)),
		func(w *world) { w.afterwards = append(w.afterwards, func() { w.pointAt(g.addr) }) })
	w.waitReady()
	require.NoError(t, w.sidecar.stop())
	closed := <-g.told
	require.Equal(t, errs.CloseNormal, closed.Code)
	require.Equal(t, "done", closed.Text)
}
