package limit

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/relay"
)

// fountain is a connection that has always more to say and takes everything; it notes when how much passed.
type fountain struct {
	mu     sync.Mutex
	passed [directions]int
	closed bool
}

func (f *fountain) Read(p []byte) (int, error) { return len(p), nil }

func (f *fountain) Write(p []byte) (int, error) {
	f.add(toBackend, len(p))
	return len(p), nil
}

func (f *fountain) CloseWrite() error { return nil }
func (f *fountain) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *fountain) add(direction, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passed[direction] += n
}

func (f *fountain) total(direction int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.passed[direction]
}

// run moves bytes in one direction with buffers of a size until the connection is closed.
func (f *fountain) run(c relay.Conn, direction, size int) {
	buf := make([]byte, size)
	move := c.Read
	if direction == toBackend {
		move = c.Write
	}
	for {
		n, err := move(buf)
		if direction == fromBackend {
			f.add(fromBackend, n)
		}
		if err != nil {
			return
		}
	}
}

func TestUnlimitedConnectionsAreNotWrapped(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: map[string]Tier{DefaultTier: {}, "slow": {Bandwidth: 1}}, Exempt: []Exemption{{Tenants: []string{"ops/*"}, Limits: []string{Bandwidth}}}})
	c := &net.TCPConn{}
	require.Same(t, c, l.Pace("a", "", c))
	require.Same(t, c, l.Pace("a", "no such tier", c))
	require.Same(t, c, l.Pace("ops/x", "slow", c))
	require.Zero(t, l.Tracked())
	require.IsType(t, &pacedConn{}, l.Pace("a", "slow", c))
}

// burstOf is what a rate allows at once.
func burstOf(rate int) float64 { return newPacer(rate, nil).burst() }

// Streams of one tenant, with buffers of any size and any number of them, never get more than the rate in any window, and
// each gets the same share; another tenant and the other direction are not theirs. A stream that ends gives its share to
// the others.
//
// Verifies: R5.5
func TestBandwidthIsKeptAndShared(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate := rapid.SampledFrom([]int{2_000, 50_000, 1_000_000, 100_000_000}).Draw(rt, "rate")
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{100, 1 << 10, 4 << 10, 32 << 10, 1 << 20}), 1, 8).Draw(rt, "buffers")
		direction := rapid.IntRange(0, 1).Draw(rt, "direction")
		for i := range sizes { // or it takes too many steps
			sizes[i] = max(sizes[i], newPacer(rate, nil).piece()/8)
		}
		synctest.Test(t, func(t *testing.T) {
			l, err := New(Config{Tiers: tiers(Tier{Bandwidth: rate})})
			require.NoError(t, err)
			piece := newPacer(rate, nil).piece()
			// Long enough that what a share may be off, a few pieces, is little.
			long := seconds(float64(50*piece*len(sizes)) / float64(rate))
			flows := make([]*fountain, len(sizes))
			conns := make([]relay.Conn, len(sizes))
			var running sync.WaitGroup
			for i, size := range sizes {
				flows[i] = &fountain{}
				conns[i] = l.Pace("a", "", flows[i])
				running.Go(func() { flows[i].run(conns[i], direction, size) })
			}
			other := &fountain{}
			otherConn := l.Pace("b", "", other)
			running.Go(func() { other.run(otherConn, direction, 32<<10) })
			back := &fountain{}
			backConn := l.Pace("a", "", back)
			running.Go(func() { back.run(backConn, 1-direction, 32<<10) })

			total := func() (n int) {
				for _, f := range flows {
					n += f.total(direction)
				}
				return n
			}
			marks := []int{0}
			const steps = 40
			for range steps {
				<-time.After(long / steps)
				synctest.Wait()
				marks = append(marks, total())
			}
			for i := range marks {
				for j := i + 1; j < len(marks); j++ {
					if most := burstOf(rate) + float64(rate)*(long/steps).Seconds()*float64(j-i) + 1; float64(marks[j]-marks[i]) > most {
						t.Fatalf("%d bytes in %v, at most %.0f", marks[j]-marks[i], long/steps*time.Duration(j-i), most)
					}
				}
			}
			require.InEpsilon(t, float64(rate)*long.Seconds(), total(), 0.05, "the rate is used")
			for i, f := range flows {
				require.InEpsilon(t, total()/len(flows), f.total(direction), 0.1, "stream %d of %v", i, sizes)
			}
			require.InEpsilon(t, float64(rate)*long.Seconds(), other.total(direction), 0.05)
			require.InEpsilon(t, float64(rate)*long.Seconds(), back.total(1-direction), 0.05)

			if len(flows) > 1 { // half of them end
				half := len(flows) / 2
				for i := range half {
					require.NoError(t, conns[i].Close())
				}
				synctest.Wait()
				before := make([]int, len(flows))
				for i := range flows {
					before[i] = flows[i].total(direction)
				}
				<-time.After(long)
				synctest.Wait()
				for i := half; i < len(flows); i++ {
					require.InEpsilon(t, float64(rate)*long.Seconds()/float64(len(flows)-half), flows[i].total(direction)-before[i], 0.1)
				}
			}
			for _, c := range append(conns, otherConn, backConn) {
				_ = c.Close()
			}
			running.Wait()
			require.Zero(t, l.shard("a").byName["a"].Value.(*tenant).pacing.conns)
		})
	})
}

func TestPausesSaveUpNoMoreThanABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 50_000
		l, err := New(Config{Tiers: tiers(Tier{Bandwidth: rate})})
		require.NoError(t, err)
		c := l.Pace("a", "", &fountain{})
		for range 3 {
			<-time.After(time.Hour)
			start, passed := time.Now(), 0
			for time.Since(start) == 0 {
				n, err := c.Read(make([]byte, 1<<20))
				require.NoError(t, err)
				if time.Since(start) == 0 {
					passed += n
				}
			}
			require.LessOrEqual(t, float64(passed), burstOf(rate))
			require.Greater(t, float64(passed), burstOf(rate)/2)
		}
		require.NoError(t, c.Close())
	})
}

// A stream that says little now and then waits for no more than a piece of each that is before it, however much the others
// want.
func TestShellsAreServedBetweenBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		l, err := New(Config{Tiers: tiers(Tier{Bandwidth: rate})})
		require.NoError(t, err)
		var running sync.WaitGroup
		var conns []relay.Conn
		const bulk = 8
		for range bulk {
			f := &fountain{}
			c := l.Pace("a", "", f)
			conns = append(conns, c)
			running.Go(func() { f.run(c, fromBackend, 1<<20) })
		}
		<-time.After(time.Second)
		shell := l.Pace("a", "", &fountain{})
		piece := newPacer(rate, nil).piece()
		for range 20 {
			start := time.Now()
			n, err := shell.Read(make([]byte, 80))
			require.NoError(t, err)
			require.Equal(t, 80, n)
			require.LessOrEqual(t, time.Since(start), seconds(float64(2*piece)/rate))
			<-time.After(time.Second)
		}
		for _, c := range append(conns, shell) {
			_ = c.Close()
		}
		running.Wait()
	})
}

func TestTierChangesAreFollowedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{Tiers: tiers(Tier{Bandwidth: 1000})})
		require.NoError(t, err)
		f := &fountain{}
		c := l.Pace("a", "", f)
		var running sync.WaitGroup
		running.Go(func() { f.run(c, toBackend, 1<<10) })
		passes := func(rate int, what string) {
			t.Helper()
			synctest.Wait()
			before := f.total(toBackend)
			<-time.After(100 * time.Second)
			synctest.Wait()
			require.InEpsilon(t, 100*rate, f.total(toBackend)-before, 0.06, what)
		}
		passes(1000, "first")
		require.NoError(t, l.SetTiers(tiers(Tier{Bandwidth: 10_000})))
		passes(10_000, "faster, for one that waited too")
		require.NoError(t, l.SetTiers(tiers(Tier{Bandwidth: 500})))
		<-time.After(10 * time.Second) // the burst of the faster rate
		passes(500, "slower")
		start := time.Now()
		last := l.Pace("a", "", &fountain{})
		require.NoError(t, l.Apply(tiers(Tier{Bandwidth: 500}), []Exemption{{Tenants: []string{"a"}}}))
		_, err = last.Write(make([]byte, 1<<20))
		require.NoError(t, err)
		require.Zero(t, time.Since(start), "exempt: a megabyte in no time")
		require.NoError(t, l.Apply(tiers(Tier{Bandwidth: 700}), nil))
		<-time.After(10 * time.Second)
		passes(700, "no longer")
		require.NoError(t, c.Close())
		require.NoError(t, last.Close())
		running.Wait()
	})
}

func TestTokensOfSeveralTiersShareBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const silver, gold = 10_000, 40_000
		l, err := New(Config{Tiers: map[string]Tier{DefaultTier: {Bandwidth: silver}, "gold": {Bandwidth: gold}}})
		require.NoError(t, err)
		var running sync.WaitGroup
		start := func(tier string) (*fountain, relay.Conn) {
			f := &fountain{}
			c := l.Pace("a", tier, f)
			running.Go(func() { f.run(c, fromBackend, 8<<10) })
			return f, c
		}
		var low, high []*fountain
		var conns []relay.Conn
		add := func(tier string, to *[]*fountain) {
			f, c := start(tier)
			*to, conns = append(*to, f), append(conns, c)
		}
		sum := func(all []*fountain) (n int) {
			for _, f := range all {
				n += f.total(fromBackend)
			}
			return n
		}
		add(DefaultTier, &low)
		add(DefaultTier, &low)
		<-time.After(100 * time.Second)
		synctest.Wait()
		require.InEpsilon(t, 100*silver, sum(low), 0.02)

		add("gold", &high)
		wasLow := sum(low)
		<-time.After(100 * time.Second)
		synctest.Wait()
		require.InEpsilon(t, 100*gold, sum(low)-wasLow+sum(high), 0.02, "together as much as the best tier gives alone")
		require.LessOrEqual(t, float64(sum(low)-wasLow), 100*silver+burstOf(silver), "and with tokens of one tier no more than it gives")
		require.InEpsilon(t, 100*silver, sum(low)-wasLow, 0.1, "which they get")

		// Coming and going saves nothing up.
		require.NoError(t, conns[2].Close())
		synctest.Wait()
		was := sum(low) + sum(high)
		for range 1000 {
			f := &fountain{}
			c := l.Pace("a", "gold", f)
			_, _ = c.Read(make([]byte, 4<<10))
			_ = c.Close()
		}
		synctest.Wait()
		require.Positive(t, sum(low)+sum(high)-was)
		for _, c := range conns {
			_ = c.Close()
		}
		running.Wait()
	})
}

func TestNewConnectionsBringNoBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{MaxTenants: 1, Tiers: tiers(Tier{Bandwidth: 10_000})})
		require.NoError(t, err)
		start, passed := time.Now(), 0
		for i := range 200 {
			c := l.Pace("a", "", &fountain{})
			n, err := c.Read(make([]byte, 1<<20))
			require.NoError(t, err)
			passed += n
			require.NoError(t, c.Close())
			if i%2 == 0 { // and being forgotten in between brings none either
				release, err := l.Tunnel("b", "")
				require.NoError(t, err)
				release()
			}
		}
		require.LessOrEqual(t, float64(passed), time.Since(start).Seconds()*10_000+1)
	})
}

func TestCloseEndsWaiting(t *testing.T) {
	set := metrics.NewSet()
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{Metrics: set, Tiers: tiers(Tier{Bandwidth: 1})})
		require.NoError(t, err)
		inner := &fountain{}
		c := l.Pace("a", "", inner)
		neighbour := l.Pace("a", "", &fountain{})
		var failed atomic.Int32
		var running sync.WaitGroup
		for _, move := range []func([]byte) (int, error){c.Read, c.Write} {
			running.Go(func() {
				n, err := move(make([]byte, 1<<10))
				if n == 0 && err == net.ErrClosed {
					failed.Add(1)
				}
			})
		}
		var served time.Time
		running.Go(func() {
			if _, err := neighbour.Read(make([]byte, 1<<10)); err == nil {
				served = time.Now()
			}
		})
		<-time.After(time.Second)
		var text bytes.Buffer
		set.WritePrometheus(&text)
		require.Contains(t, text.String(), `fairlead_gateway_bandwidth_waiting{direction="from_backend"} 2`)
		require.Contains(t, text.String(), `fairlead_gateway_bandwidth_waits_total{direction="to_backend"} 1`)
		start := time.Now()
		require.NoError(t, c.Close())
		_ = c.Close()
		running.Wait()
		require.EqualValues(t, 2, failed.Load())
		require.True(t, inner.closed)
		require.InDelta(t, newPacer(1, nil).piece(), served.Sub(start).Seconds(), 2, "the place in the queue was given up")
		require.NoError(t, neighbour.Close())
		p := l.shard("a").byName["a"].Value.(*tenant).pacing
		require.Zero(t, p.conns)
		require.Empty(t, p.tiers[0].pacers[fromBackend].queue)
	})
}

// failing is a connection whose writes fail after some bytes, and whose reads end.
type failing struct{ fountain }

func (f *failing) Read(p []byte) (int, error)  { return copy(p, "last words"), io.EOF }
func (f *failing) Write(p []byte) (int, error) { return 1, io.ErrClosedPipe }

func TestPacedConnectionsTellWhatTheirsTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{Tiers: tiers(Tier{Bandwidth: 100})})
		require.NoError(t, err)
		c := l.Pace("a", "", &failing{})
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "last words", string(b))
		n, err := c.Write([]byte(strings.Repeat("x", 5000)))
		require.Equal(t, 1, n)
		require.ErrorIs(t, err, io.ErrClosedPipe)
		n, err = c.Write(nil)
		require.NoError(t, err)
		require.Zero(t, n)
		require.NoError(t, c.CloseWrite())
		require.NoError(t, c.Close())
	})
}

// Who cannot be tracked is paced all the same.
func TestPaceOfTooManyTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{MaxTenants: 1, Tiers: tiers(Tier{Bandwidth: 1000})})
		require.NoError(t, err)
		_, err = l.Tunnel("holder", "")
		require.NoError(t, err)
		c := l.Pace("a", "", &fountain{})
		start := time.Now()
		n, err := io.ReadFull(c, make([]byte, 100_000))
		require.NoError(t, err)
		require.InDelta(t, float64(n)/1000, time.Since(start).Seconds(), 5)
		require.NoError(t, c.Close())
		require.Equal(t, 1, l.Tracked())
	})
}

var _ relay.Paced = (*pacedConn)(nil)

func BenchmarkPace(b *testing.B) {
	for _, rate := range []int{0, 1 << 50} {
		b.Run(fmt.Sprint("rate ", rate), func(b *testing.B) {
			l, err := New(Config{Tiers: tiers(Tier{Bandwidth: rate})})
			require.NoError(b, err)
			c := l.Pace("a", "", &fountain{})
			buf := make([]byte, 16<<10)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
