package backend

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/breaker"
)

// afar dials after a time, as if the backend were that far away.
func afar(rtt time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, err := slowly(rtt)(ctx, network, addr); err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// flood has a tenant keep n opens going until stop, and returns how long each took and stood in the queue.
func flood(t *testing.T, s *Set, n int, stop <-chan struct{}) (took, queue []time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				start := time.Now()
				ctx, waits := WithWaits(context.Background())
				c, err := s.Dial(ctx, Caller{Tenant: "flood"}, "direct")
				if !assert.NoError(t, err) {
					return
				}
				_ = c.Close()
				mu.Lock()
				took = append(took, time.Since(start))
				queue = append(queue, waits.Queue)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return took, queue
}

// With real sockets to a backend 50 ms away: prints how long a tenant's opens take alone and beside another that keeps a
// few hundred going. What is asserted leaves room for a busy machine; the exact bound is shown in virtual time. Dials are so
// slow that the flood waits for them and not for a processor, which no queue shares out.
//
// Verifies: R5.5
func TestFairnessWithRealSockets(t *testing.T) {
	addr := listen(t, func(net.Conn) {})
	s := queueSet(t, Dialing{Concurrent: 16}, afar(50*time.Millisecond), func(c *Config) { c.Backends[0].Address = addr })
	defer func() { require.NoError(t, s.Close(t.Context())) }()
	alone, aloneQueue := openEvery(t, s, "other", 150, 15*time.Millisecond)
	stop := make(chan struct{})
	var theirs, theirQueue []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() { theirs, theirQueue = flood(t, s, 300, stop) })
	require.Eventually(t, func() bool { return s.waitingFor("dial") > 200 }, 10*time.Second, time.Millisecond)
	start := time.Now()
	beside, besideQueue := openEvery(t, s, "other", 150, 15*time.Millisecond)
	lasted := time.Since(start)
	close(stop)
	wg.Wait()

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "opens\tn\tp50\tp99\tin the queue p50\tp99")
	for _, row := range []struct {
		name          string
		took, inQueue []time.Duration
	}{{"alone", alone, aloneQueue}, {"beside a flood", beside, besideQueue}, {"of the flood", theirs, theirQueue}} {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%.1f ms\t%.1f ms\t%.1f ms\t%.1f ms\n", row.name, len(row.took),
			quantile(row.took, .5).Seconds()*1e3, quantile(row.took, .99).Seconds()*1e3,
			quantile(row.inQueue, .5).Seconds()*1e3, quantile(row.inQueue, .99).Seconds()*1e3)
	}
	_ = w.Flush()
	t.Logf("\n%sthe flood: %.0f opens/s; p99 beside it is %.2f times that alone", table.String(),
		float64(len(theirs))/lasted.Seconds(), float64(quantile(beside, .99))/float64(quantile(alone, .99)))
	require.Less(t, quantile(besideQueue, .9), quantile(theirQueue, .5), "the flood waits for itself")
}

// BenchmarkPassthrough opens and closes connections to a server in this process, with 64 callers of one tenant.
func BenchmarkPassthrough(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = c.Read(make([]byte, 1)) // until the caller closes
				_ = c.Close()
			})
		}
	})
	br, err := breaker.New(breaker.Config{})
	require.NoError(b, err)
	s, err := New(Config{Backends: []Backend{{Name: "b", Address: l.Addr().String()}}, Routes: []Route{{Name: "direct", Backend: "b", Mode: Passthrough}}, Breaker: br})
	require.NoError(b, err)
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for left.Add(-1) >= 0 {
				c, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "direct")
				if err != nil {
					b.Error(err)
					return
				}
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "opens/s")
	_ = l.Close()
	wg.Wait()
	require.NoError(b, s.Close(b.Context()))
}
