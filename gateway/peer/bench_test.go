package peer_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/peer"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

// secured is a TLS connection over TCP, corked at the near end as a replica's are, with the far end's writes as large as a lane's.
func secured(t testing.TB, server, client *tls.Config, nearServes bool) (near, far *ws.Raw) {
	t.Helper()
	a, b := wire(t)
	n, f := tls.Client(ws.NewCork(a), client), tls.Server(ws.NewCork(b), server)
	if nearServes {
		n, f = tls.Server(ws.NewCork(a), server), tls.Client(ws.NewCork(b), client)
	}
	done := make(chan error, 1)
	go func() { done <- f.Handshake() }()
	require.NoError(t, n.Handshake())
	require.NoError(t, <-done)
	near, err := ws.NewRaw(n)
	require.NoError(t, err)
	far, err = ws.NewRaw(f)
	require.NoError(t, err)
	return near, far
}

func configs(t testing.TB) (server, client *tls.Config) {
	ca, err := testbed.NewCA(t.TempDir())
	require.NoError(t, err)
	cert, err := ca.Issue(testbed.CertificateConfig{})
	require.NoError(t, err)
	server, err = ca.ServerTLS(cert)
	require.NoError(t, err)
	client = ca.ClientTLS()
	client.ServerName = "127.0.0.1"
	server.DynamicRecordSizingDisabled, client.DynamicRecordSizingDisabled = true, true
	server.MinVersion, client.MinVersion = tls.VersionTLS13, tls.VersionTLS13
	return server, client
}

// cpu is what the process has used of the processor.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRelay sends as much as a lane writes at once, without a relay, through a plain TLS relay (io.Copy, 32 KiB), and through
// Carry. What a relay costs is the difference to that without one.
func BenchmarkRelay(b *testing.B) {
	const piece = 128 << 10
	server, client := configs(b)
	p := startPort(b, peer.Config{SecretFile: secretFile(b, secret), Admit: nobody})
	plain := func(from, to net.Conn) {
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(onlyWriter{from}, onlyReader{to}); from.Close() })
		_, _ = io.Copy(onlyWriter{to}, onlyReader{from})
		to.Close()
		both.Wait()
	}
	ours := func(from, to net.Conn) { _, _, _ = p.Carry(context.Background(), peer.Relay{}, from, to) }
	for _, c := range []struct {
		name  string
		relay func(from, to net.Conn)
		up    bool
	}{{"none", nil, true}, {"plain", plain, true}, {"carry up", ours, true}, {"carry down", ours, false}} {
		b.Run(c.name, func(b *testing.B) {
			var src, dst net.Conn
			var relaying sync.WaitGroup
			near, far := secured(b, server, client, true)
			src, dst = far, near
			if c.relay != nil {
				toOwner, owner := secured(b, server, client, false)
				dst = owner
				relaying.Go(func() { c.relay(near, toOwner) })
			}
			if !c.up {
				src, dst = dst, src
			}
			read := make(chan int64, 1)
			go func() {
				buf := make([]byte, piece)
				n, _ := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{dst}, buf)
				read <- n
			}()
			data := make([]byte, piece)
			b.SetBytes(piece)
			before := cpu()
			b.ResetTimer()
			for range b.N {
				if _, err := src.Write(data); err != nil {
					b.Fatal(err)
				}
			}
			require.NoError(b, src.(*ws.Raw).CloseWrite())
			require.EqualValues(b, b.N*piece, <-read)
			b.StopTimer()
			b.ReportMetric((cpu()-before).Seconds()*1000/(float64(b.N)*piece/(1<<30)), "cpu-ms/GiB")
			src.Close()
			dst.Close()
			relaying.Wait()
		})
	}
}

type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// memory is what the heap and stacks take, in bytes.
func memory() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools held
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkIdleRelay shows what a relay holds that has carried something and waits: beyond its two connections, and these.
func BenchmarkIdleRelay(b *testing.B) {
	for b.Loop() {
		connections, relay := idle(b, 500)
		b.ReportMetric(relay, "B/relay")
		b.ReportMetric(connections, "B/its-connections")
	}
}

// exchange sends something each way, some of it at once.
func exchange(t testing.TB, one, two net.Conn) {
	data, got := make([]byte, 200_000), make([]byte, 200_000)
	for _, dir := range [][2]net.Conn{{one, two}, {two, one}} {
		written := make(chan error, 1)
		go func() {
			_, err := dir[0].Write(data)
			written <- err
		}()
		_, err := io.ReadFull(dir[1], got)
		require.NoError(t, err)
		require.NoError(t, <-written)
	}
}

func idle(t testing.TB, n int) (connections, beyond float64) {
	server, client := configs(t)
	p := startPort(t, peer.Config{SecretFile: secretFile(t, secret), Admit: nobody})
	type pair struct{ client, near, toOwner, owner *ws.Raw }
	pairs := make([]pair, n)
	start := memory()
	for i := range pairs {
		pairs[i].near, pairs[i].client = secured(t, server, client, true)
		pairs[i].toOwner, pairs[i].owner = secured(t, server, client, false)
		exchange(t, pairs[i].client, pairs[i].near)
		exchange(t, pairs[i].toOwner, pairs[i].owner)
	}
	made := memory()
	var relaying sync.WaitGroup
	for _, x := range pairs {
		relaying.Go(func() { _, _, _ = p.Carry(context.Background(), peer.Relay{}, x.near, x.toOwner) })
	}
	for _, x := range pairs {
		exchange(t, x.client, x.owner)
	}
	end := memory()
	p.CutAll()
	relaying.Wait()
	runtime.KeepAlive(pairs)
	// Half of the connections' memory is the far ends'.
	return float64(made-start) / float64(2*n), float64(end-made) / float64(n)
}

// An idle relay holds two goroutines and two small buffers, whatever it has carried before. (15 KiB when this was written.)
func TestIdleRelaysHoldLittle(t *testing.T) {
	if raced {
		t.Skip("the race detector's memory counts too")
	}
	_, beyond := idle(t, 100)
	require.Less(t, beyond, 40.0*1024)
}
