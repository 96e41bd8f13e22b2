package limit

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/shared/testbed/farend"
)

// gateway is as much of one as it takes to pace streams: it accepts tunnels over WebSockets, and connects each stream to a
// backend by way of a Limiter.
type gateway struct {
	t       testing.TB
	far     *farend.Server
	backend net.Listener
	floods  sync.WaitGroup // end with their tunnels
}

// newGateway makes one. A stream's route is the tenant that it belongs to, and a tunnel's path too.
func newGateway(t testing.TB, limits *Limiter, memory func(tenant string) *link.Budget) *gateway {
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{t: t, backend: backend}
	t.Cleanup(func() {
		g.floods.Wait()
		_ = backend.Close()
	})
	accept := func(s *link.Stream) {
		c, err := net.Dial("tcp", backend.Addr().String())
		if err != nil {
			s.Reset(err)
			return
		}
		s.Accept()
		_ = relay.Pump(s, limits.Pace(s.Request().Route, "", c.(*net.TCPConn)))
	}
	g.far = farend.New(t, func(tenant string) link.Config {
		cfg := link.Config{Accept: accept}
		if memory != nil {
			cfg.Budget, cfg.Window = memory(tenant), 16<<10 // which grows soon
		}
		return cfg
	})
	return g
}

// tunnel is a sidecar's tunnel of a tenant.
func (g *gateway) tunnel(tenant string) *link.Tunnel { return g.far.Connect(g.t, tenant) }

// open opens a stream of the tenant and returns both of its ends: the stream, and the backend's socket.
func (g *gateway) open(tun *link.Tunnel, tenant string) (*link.Stream, *net.TCPConn) {
	s, err := tun.Open(link.OpenRequest{Route: tenant})
	require.NoError(g.t, err)
	c, err := g.backend.Accept()
	require.NoError(g.t, err)
	g.t.Cleanup(func() { _ = c.Close() })
	return s, c.(*net.TCPConn)
}

// flood is a stream whose both ends send without end; it counts what arrives.
type flood struct {
	arrived [directions]atomic.Int64
	ended   sync.WaitGroup
}

func (g *gateway) flood(tun *link.Tunnel, tenant string) *flood {
	s, backend := g.open(tun, tenant)
	f := &flood{}
	pump := func(w io.Writer) {
		for b := make([]byte, 32<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}
	drain := func(r io.Reader, n *atomic.Int64) {
		for b := make([]byte, 64<<10); ; {
			got, err := r.Read(b)
			n.Add(int64(got))
			if err != nil {
				return
			}
		}
	}
	f.ended.Go(func() { pump(s) })
	f.ended.Go(func() { pump(backend) })
	f.ended.Go(func() { drain(s, &f.arrived[fromBackend]) })
	f.ended.Go(func() { drain(backend, &f.arrived[toBackend]) })
	g.floods.Go(f.ended.Wait)
	return f
}

func sum(all []*flood, direction int) (n int64) {
	for _, f := range all {
		n += f.arrived[direction].Load()
	}
	return n
}

// Two tenants, each with streams in several tunnels that send as much as they can both ways: what arrives of each tenant
// is never more than its rate since the beginning, whatever the machine is busy with, and all streams get on.
func TestPacedTunnels(t *testing.T) {
	const rate = 2 << 20
	l, err := New(Config{Tiers: tiers(Tier{Bandwidth: rate})})
	require.NoError(t, err)
	g := newGateway(t, l, nil)
	start := time.Now()
	floods := map[string][]*flood{}
	tunnels := []*link.Tunnel{}
	for _, tenant := range []string{"one", "other"} {
		for range 2 {
			tun := g.tunnel(tenant)
			tunnels = append(tunnels, tun)
			for range 3 {
				floods[tenant] = append(floods[tenant], g.flood(tun, tenant))
			}
		}
	}
	within := func() bool {
		for _, all := range floods {
			for d := range directions {
				arrived := sum(all, d) // before the time is read
				if most := time.Since(start).Seconds() * rate; float64(arrived) > most {
					t.Errorf("%d bytes, at most %.0f", arrived, most)
				}
			}
		}
		return !t.Failed()
	}
	require.Eventually(t, func() bool {
		if !within() {
			return true
		}
		for _, all := range floods {
			for _, f := range all {
				for d := range directions {
					if f.arrived[d].Load() < 100<<10 {
						return false
					}
				}
			}
		}
		return true
	}, time.Minute, 20*time.Millisecond)
	for _, tun := range tunnels {
		tun.Close(nil)
	}
}

// A tenant that sends much to a paced backend is held back by credit: the gateway holds no more than the window of its
// stream, and all bytes arrive, with the end.
func TestPacedUploadIsHeldBack(t *testing.T) {
	l, err := New(Config{Tiers: tiers(Tier{Bandwidth: 1 << 20})})
	require.NoError(t, err)
	process := link.NewBudget(1<<30, nil)
	g := newGateway(t, l, func(string) *link.Budget { return process })
	tun := g.tunnel("a")
	s, backend := g.open(tun, "a")
	b := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	var accepted atomic.Int64
	sent := make(chan error, 1)
	go func() {
		for rest := b; len(rest) > 0; {
			n, err := s.Write(rest[:min(len(rest), 16<<10)])
			accepted.Add(int64(n))
			rest = rest[n:]
			if err != nil {
				sent <- err
				return
			}
		}
		sent <- s.CloseWrite()
	}()
	h := sha256.New()
	received := int64(0)
	for buf := make([]byte, 8<<10); ; {
		n, err := backend.Read(buf)
		h.Write(buf[:n])
		received += int64(n)
		// The sidecar retains and the gateway queues what is in the window; neither grows, because nothing flows quickly.
		require.LessOrEqual(t, accepted.Load()-received, int64(2<<20))
		require.LessOrEqual(t, process.Used(), int64(1<<20))
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
	}
	require.NoError(t, <-sent)
	want := sha256.Sum256(b)
	require.Equal(t, want[:], h.Sum(nil))
	require.NoError(t, backend.Close())
}

// Ending a tunnel while its streams wait for their bandwidth leaves nothing behind, and shows at the backend as a reset.
func TestTunnelsEndWhileTheyWait(t *testing.T) {
	l, err := New(Config{Tiers: tiers(Tier{Bandwidth: 1})})
	require.NoError(t, err)
	g := newGateway(t, l, nil)
	tun := g.tunnel("a")
	s, backend := g.open(tun, "a")
	_, err = s.Write([]byte("more than a byte a second"))
	require.NoError(t, err)
	_, err = backend.Write([]byte("more than a byte a second"))
	require.NoError(t, err)
	p := l.counts.bandwidth
	require.Eventually(t, func() bool { return p[toBackend].waiting.Load() == 1 && p[fromBackend].waiting.Load() == 1 }, 10*time.Second, time.Millisecond)
	s.Reset(io.ErrUnexpectedEOF)
	_, err = backend.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.Eventually(t, func() bool { return p[toBackend].waiting.Load() == 0 && p[fromBackend].waiting.Load() == 0 }, 10*time.Second, time.Millisecond)
}

// What a tunnel's windows grow by is the tenant's, together with its other tunnels.
func TestTunnelsShareTheMemoryOfTheirTenant(t *testing.T) {
	const most = 256 << 10
	process := link.NewBudget(1<<30, nil)
	l, err := New(Config{Memory: process, Tiers: tiers(Tier{Memory: most})})
	require.NoError(t, err)
	budgets := map[string]*link.Budget{}
	var mu sync.Mutex
	g := newGateway(t, l, func(tenant string) *link.Budget {
		b, _ := l.Budget(tenant, "")
		mu.Lock()
		defer mu.Unlock()
		budgets[tenant] = b
		return b
	})
	used := func(tenant string) int64 {
		mu.Lock()
		defer mu.Unlock()
		return budgets[tenant].Used()
	}
	var tunnels []*link.Tunnel
	for _, tenant := range []string{"a", "a", "b"} {
		tun := g.tunnel(tenant)
		tunnels = append(tunnels, tun)
		g.flood(tun, tenant)
	}
	require.Eventually(t, func() bool {
		// What is refused shows for an instant, since it is added before the sum is looked at: a step of each tunnel.
		require.LessOrEqual(t, used("a"), int64(3*most))
		return used("a") >= most/8 && used("b") >= most/8
	}, 30*time.Second, time.Millisecond)
	for _, tun := range tunnels {
		tun.Close(nil)
	}
	require.Eventually(t, func() bool { return used("a") == 0 && used("b") == 0 && process.Used() == 0 }, 10*time.Second, time.Millisecond)
}

// BenchmarkPacedTunnels says how much of its bandwidth each of two tenants gets, in per cent, the least and the most of
// both directions, and how far apart the streams of a tenant are; with streams that send all the time.
func BenchmarkPacedTunnels(b *testing.B) {
	for _, rate := range []int{1 << 20, 8 << 20, 32 << 20} {
		b.Run(fmt.Sprint(rate>>20, " MiB per second"), func(b *testing.B) {
			l, err := New(Config{Tiers: map[string]Tier{DefaultTier: {Bandwidth: rate}}})
			require.NoError(b, err)
			g := newGateway(b, l, nil)
			floods := map[string][]*flood{}
			for tenant, streams := range map[string]int{"few": 2, "many": 20} {
				tun := g.tunnel(tenant)
				b.Cleanup(func() { tun.Close(nil) })
				for range streams {
					floods[tenant] = append(floods[tenant], g.flood(tun, tenant))
				}
			}
			<-time.After(time.Second) // until all flow
			scheduler := new(schedulerSource)
			_, _ = scheduler.read()
			type mark struct{ arrived [directions]int64 }
			before := map[*flood]mark{}
			for _, all := range floods {
				for _, f := range all {
					before[f] = mark{[directions]int64{f.arrived[0].Load(), f.arrived[1].Load()}}
				}
			}
			start := time.Now()
			b.ResetTimer()
			for range b.N {
				<-time.After(time.Second)
			}
			took := time.Since(start).Seconds()
			least, most, apart := 1e9, 0.0, 0.0
			for _, all := range floods {
				for d := range directions {
					total, low, high := 0.0, 1e18, 0.0
					for _, f := range all {
						n := float64(f.arrived[d].Load() - before[f].arrived[d])
						total, low, high = total+n, min(low, n), max(high, n)
					}
					part := 100 * total / took / float64(rate)
					least, most, apart = min(least, part), max(most, part), max(apart, 100*(high-low)*float64(len(all))/total)
				}
			}
			b.ReportMetric(least, "least_%")
			b.ReportMetric(most, "most_%")
			b.ReportMetric(apart, "apart_%")
			p99, _ := scheduler.read()
			b.ReportMetric(p99*1e6, "sched_p99_µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}
