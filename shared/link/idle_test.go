package link_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
	"fairlead/shared/relay"
)

// tcpPair is the two ends of a TCP connection.
func tcpPair(t *testing.T, l net.Listener) (near, far *net.TCPConn) {
	a, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// A relay between a socket and a stream that has nothing to do holds no buffer, and one goroutine at each side.
//
// Verifies: N4
func TestIdleRelayHoldsNoBufferAndOneGoroutine(t *testing.T) {
	const count = 50
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	backends := make(chan *net.TCPConn, count)
	tun := link.MemTunnel(t, link.Config{Accept: func(s *link.Stream) {
		near := <-backends
		s.Accept()
		relay.Start(s, near, func(error) {})
	}}, link.Config{})
	buffers, goroutines := link.HeldBuffers(), runtime.NumGoroutine()
	ended := make(chan error, count)
	var apps, far []*net.TCPConn
	for range count {
		app, local := tcpPair(t, l)
		near, backend := tcpPair(t, l)
		backends <- near
		s, err := tun.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		relay.Start(s, local, func(err error) { ended <- err })
		apps, far = append(apps, app), append(far, backend)
	}
	for i := range count { // each has carried something, both ways
		_, err := apps[i].Write([]byte("ping"))
		require.NoError(t, err)
	}
	for _, c := range far {
		b := make([]byte, 4)
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		_, err = c.Write(b)
		require.NoError(t, err)
	}
	for _, c := range apps {
		b := make([]byte, 4)
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		require.Equal(t, "ping", string(b))
	}
	var buffersNow, goroutinesNow int64
	if !eventually(func() bool { // acknowledgements take up to 50 ms
		buffersNow, goroutinesNow = link.HeldBuffers()-buffers, int64(runtime.NumGoroutine()-goroutines)
		return buffersNow == 0 && goroutinesNow == 2*count
	}) {
		t.Fatalf("%d buffers and %d goroutines for %d relays at each side", buffersNow, goroutinesNow, count)
	}
	for i := range apps {
		apps[i].Close()
		far[i].Close()
	}
	for range count {
		require.NoError(t, <-ended)
	}
	require.True(t, eventually(func() bool { return link.HeldBuffers() == buffers && runtime.NumGoroutine() <= goroutines }))
}

// eventually is require.Eventually without goroutines of its own.
func eventually(f func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if f() {
			return true
		}
		<-tick.C
	}
	return false
}
