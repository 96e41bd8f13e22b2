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
func TestIdleRelayHoldsNoBufferAndOneGoroutine(t *testing.T) {
	const count = 50
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	backends := make(chan *net.TCPConn, 1)
	before := link.HeldBuffers()
	tun := link.MemTunnel(t, link.Config{Accept: func(s *link.Stream) {
		near := <-backends
		s.Accept()
		relay.Start(s, near, func(error) {})
	}}, link.Config{})
	ended := make(chan error, count+1)
	var outer []*net.TCPConn
	connect := func() {
		app, local := tcpPair(t, l)
		near, backend := tcpPair(t, l)
		backends <- near
		s, err := tun.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		relay.Start(s, local, func(err error) { ended <- err })
		for _, way := range [][2]*net.TCPConn{{app, backend}, {backend, app}} {
			_, err := way[0].Write([]byte("ping"))
			require.NoError(t, err)
			b := make([]byte, 4)
			_, err = io.ReadFull(way[1], b)
			require.NoError(t, err)
			require.Equal(t, "ping", string(b))
		}
		outer = append(outer, app, backend)
	}
	connect() // the lane's own goroutines run from here on
	require.True(t, eventually(func() bool { return link.HeldBuffers() == before }))
	buffers, goroutines := link.HeldBuffers(), runtime.NumGoroutine()
	for range count {
		connect()
	}
	var buffersNow, goroutinesNow int64
	if !eventually(func() bool { // acknowledgements take up to 50 ms
		buffersNow, goroutinesNow = link.HeldBuffers()-buffers, int64(runtime.NumGoroutine()-goroutines)
		return buffersNow == 0 && goroutinesNow == 2*count
	}) {
		t.Fatalf("%d buffers and %d goroutines for %d relays at each side", buffersNow, goroutinesNow, count)
	}
	for _, c := range outer {
		c.Close()
	}
	for range count + 1 {
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
