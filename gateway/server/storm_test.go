package server_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"fairlead/gateway/server"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

// withTLS serves as the gateway does.
func withTLS(t *testing.T) (change func(*server.Config), client *tls.Config) {
	ca, cert := testbed.NewTestCA(t)
	cfg, err := ca.ServerTLS(cert)
	require.NoError(t, err)
	cfg.NextProtos, cfg.DynamicRecordSizingDisabled = []string{"http/1.1"}, true
	return func(c *server.Config) { c.TLS, c.Tune = cfg, ws.Tune }, ca.ClientTLS()
}

// bystander is a tunnel that was there before: a stream on which short messages are echoed, and one that carries bytes
// as fast as it can.
type bystander struct {
	t      *testing.T
	tunnel *link.Tunnel
	echo   *link.Stream
	bulk   *link.Stream

	sent, got hash.Hash
	stop      atomic.Bool
	carried   chan int64 // bytes of the transfer, once
	ran       chan error
}

func (f *face) bystander(client *tls.Config) *bystander {
	f.t.Helper()
	scheme := "ws://"
	if client != nil {
		scheme = "wss://"
	}
	conn, err := (&ws.Dialer{TLS: client, MaxMessage: 1 << 20}).Dial(f.t.Context(), scheme+f.Addr().String()+"/v1/tunnel", http.Header{"Authorization": {token}}, link.Subprotocol)
	require.NoError(f.t, err)
	b := &bystander{t: f.t, sent: sha256.New(), got: sha256.New(), carried: make(chan int64, 1), ran: make(chan error, 1)}
	var lane *link.Lane
	b.tunnel, lane, err = link.Connect(f.t.Context(), conn, link.Config{})
	require.NoError(f.t, err)
	go func() { b.ran <- lane.Run() }()
	b.echo = f.open(b.tunnel, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	b.bulk = f.open(b.tunnel, func(c *net.TCPConn) {
		_, _ = io.Copy(b.got, c)
		_, _ = c.Write([]byte{1})
	})
	go b.carry()
	return b
}

func (f *face) open(tunnel *link.Tunnel, backend func(*net.TCPConn)) *link.Stream {
	f.t.Helper()
	s, err := tunnel.Open(link.OpenRequest{Route: "git"})
	require.NoError(f.t, err)
	c := <-f.backend
	go func() {
		defer c.Close()
		backend(c)
	}()
	return s
}

// carry sends 16 KiB a millisecond until stop: a transfer that is there, but does not take the machine.
func (b *bystander) carry() {
	block := make([]byte, 16<<10)
	n := int64(0)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !b.stop.Load() {
		<-tick.C
		_, _ = rand.Read(block[:64])
		b.sent.Write(block)
		m, err := b.bulk.Write(block)
		n += int64(m)
		if err != nil {
			break
		}
	}
	_ = b.bulk.CloseWrite()
	_, _ = io.ReadFull(b.bulk, block[:1]) // the backend has all
	b.carried <- n
}

// quantiles of round trips.
type quantiles struct{ p50, p99, most time.Duration }

// measure makes n round trips of 64 bytes, one each two milliseconds.
func (b *bystander) measure(n int) quantiles {
	b.t.Helper()
	took := make([]time.Duration, n)
	out, in := make([]byte, 64), make([]byte, 64)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := range took {
		<-tick.C
		_, _ = rand.Read(out)
		start := time.Now()
		_, err := b.echo.Write(out)
		require.NoError(b.t, err)
		_, err = io.ReadFull(b.echo, in)
		require.NoError(b.t, err)
		took[i] = time.Since(start)
		require.True(b.t, bytes.Equal(out, in))
	}
	slices.Sort(took)
	return quantiles{took[n/2], took[n*99/100], took[n-1]}
}

// finish ends the tunnel: what was sent has arrived.
func (b *bystander) finish() {
	b.t.Helper()
	b.stop.Store(true)
	n := <-b.carried
	assert.NotZero(b.t, n)
	assert.Equal(b.t, b.sent.Sum(nil), b.got.Sum(nil), "%d bytes of the transfer", n)
	b.tunnel.Close(nil)
	<-b.ran
	b.tunnel.Wait()
}

// footprint is what the process holds.
type footprint struct {
	memory     uint64 // heap and stacks in use, in bytes
	goroutines int
	cpu        time.Duration
}

func (q quantiles) String() string {
	return fmt.Sprintf("p50 %v, p99 %v, max %v", q.p50.Round(time.Microsecond), q.p99.Round(time.Microsecond), q.most.Round(time.Microsecond))
}

func held() footprint {
	runtime.GC()
	runtime.GC() // what pools hold is freed by the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return footprint{m.HeapAlloc + m.StackInuse, runtime.NumGoroutine(), processor()}
}

// processor is the CPU time of this process.
func processor() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Strangers of all kinds at once, as many as they like: what they make the gateway hold and write is bounded, a tunnel that
// is there goes on, a newcomer with a token comes in, and afterwards everything is as before.
func TestStorms(t *testing.T) {
	for _, c := range []struct {
		kind   string
		n      int
		places int
		each   int // bytes that one may take, at most
	}{
		{"tcp", 10_000, 0, 24 << 10},
		{"tls", 2_000, 500, 40 << 10},
		{"slow", 1_000, 500, 64 << 10},
		{"storm", 100, 0, 64 << 10},
		{"hello", 100, 0, 64 << 10},
		{"requests", 100, 0, 64 << 10},
	} {
		t.Run(c.kind, func(t *testing.T) {
			change, client := withTLS(t)
			f := start(t, func(cfg *server.Config) {
				change(cfg)
				cfg.Strangers = c.places
			})
			places := c.places
			if places == 0 {
				places = 2_000
			}
			b := f.bystander(client)
			quiet := b.measure(500)
			before, begun := held(), time.Now()
			attack := f.attack(c.kind, max(1, c.n/slowdown))
			first := attack.wait()
			during := held()
			storm := b.measure(1000 / slowdown)
			newcomer := f.bystander(client)
			newcomer.measure(10)
			all := attack.stop()
			took := time.Since(begun)
			cpu := processor() - before.cpu
			newcomer.finish()
			f.strangers(0)
			b.finish()

			n, memory := during.goroutines-before.goroutines, int(during.memory)-int(before.memory)
			lines := strings.Count(f.log.String(), "\n")
			t.Logf("%s: %+v, then %+v in %v", c.kind, first, all, took.Round(time.Millisecond))
			t.Logf("%d more goroutines, %d KiB, %d bytes each; CPU %v, %v each; %d lines", n, memory>>10, memory/max(1, n), cpu.Round(time.Millisecond), cpu/time.Duration(max(1, all.Connected)), lines)
			t.Logf("echo before: %v; during: %v", quiet, storm)
			assert.LessOrEqual(t, n, places+places/10, "connections are bounded")
			if slowdown == 1 {
				assert.Less(t, memory, max(places, n)*c.each, "memory is bounded")
			}
			seconds := int(took/time.Second) + 2
			assert.Less(t, lines, 50+seconds*6*21, "the log is bounded: a few causes, 20 lines and a sum of each in a second")
			assert.NotZero(t, all.Connected)
		})
	}
}
