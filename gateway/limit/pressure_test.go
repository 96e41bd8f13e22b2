package limit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// dial is a source whose value the test sets.
type dial struct {
	value float64
	err   error
}

func (d *dial) read() (float64, error) { return d.value, d.err }

func newPressure(t *testing.T, cfg PressureConfig) (p *Pressure, log, exposed func() string) {
	var lines bytes.Buffer
	set := metrics.NewSet()
	cfg.Logger, cfg.Metrics = slog.New(slog.NewTextHandler(&lines, nil)), set
	p, err := NewPressure(cfg)
	require.NoError(t, err)
	return p, lines.String, func() string {
		var text bytes.Buffer
		set.WritePrometheus(&text)
		return text.String()
	}
}

func TestPressureRefusesByPriority(t *testing.T) {
	memory := &dial{}
	p, log, exposed := newPressure(t, PressureConfig{Sources: []Source{{Name: "memory", Thresholds: Thresholds{0.8, 0.9, 0.95}, Read: memory.read}}})
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{}), Pressure: p, Exempt: []Exemption{{Tenants: []string{"ops"}, Limits: []string{Shedding}}}})
	for _, c := range []struct {
		value             float64
		level             Level
		low, normal, high bool // refused
		tunnels           bool
	}{{0.5, Calm, false, false, false, false}, {0.8, Elevated, true, false, false, false}, {0.91, High, true, true, false, false}, {0.99, Critical, true, true, true, true}} {
		memory.value = c.value
		p.sample()
		require.Equal(t, c.level, p.Level())
		for priority, refused := range map[link.Priority]bool{link.Low: c.low, link.Normal: c.normal, link.High: c.high} {
			for _, err := range []error{p.Admit(priority), l.Shed("a", priority)} {
				require.Equal(t, refused, err != nil, "%v at %v", priority, c.level)
				if refused {
					require.ErrorIs(t, err, errs.Overloaded)
					require.GreaterOrEqual(t, errs.From(err).RetryAfter, 2500*time.Millisecond)
					require.Less(t, errs.From(err).RetryAfter, 7500*time.Millisecond)
				}
			}
			require.NoError(t, l.Shed("ops", priority))
		}
		require.Equal(t, c.tunnels, p.AdmitTunnel() != nil)
		require.Equal(t, c.tunnels, l.ShedTunnel("a") != nil)
		require.NoError(t, l.ShedTunnel("ops"))
		require.Equal(t, c.low, p.Admit(link.Priority(200)) != nil, "what is no priority counts as the lowest")
	}
	require.Contains(t, exposed(), "fairlead_gateway_pressure 3\n")
	require.Contains(t, exposed(), `fairlead_gateway_pressure_source{source="memory"} 0.99`)
	require.Contains(t, exposed(), `fairlead_gateway_limit_refusals_total{limit="shedding"} 17`)
	require.Equal(t, 3, strings.Count(log(), "pressure rises"))
	require.Contains(t, log(), "pressure=critical before=high source=memory value=0.99")
}

func TestNoPressureRefusesNothing(t *testing.T) {
	var p *Pressure
	require.NoError(t, p.Admit(link.Low))
	require.NoError(t, p.AdmitTunnel())
	require.Equal(t, Calm, p.Level())
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{})})
	require.NoError(t, l.Shed("a", link.Low))
	require.NoError(t, l.ShedTunnel("a"))
}

// A level is left one at a time, after several samples that are well below it, and entered after as many as the source
// says: a value that wavers around a threshold moves it once.
func TestPressureDoesNotFlap(t *testing.T) {
	memory, cpu := &dial{}, &dial{}
	p, log, _ := newPressure(t, PressureConfig{Sources: []Source{
		{Name: "memory", Thresholds: Thresholds{0.8, 0.9, 0.95}, Read: memory.read},
		{Name: "cpu", Thresholds: Thresholds{1, 2, 3}, Samples: 3, Read: cpu.read},
	}})
	after := func(d *dial, values ...float64) Level {
		for _, v := range values {
			d.value = v
			p.sample()
		}
		return p.Level()
	}
	require.Equal(t, Elevated, after(memory, 0.81))
	require.Equal(t, Elevated, after(memory, 0.79, 0.81, 0.75, 0.79, 0.81, 0.73, 0.79, 0.75, 0.73))
	require.Equal(t, Elevated, after(memory, 0.1, 0.1, 0.1, 0.1, 0.75, 0.1, 0.1, 0.1, 0.1), "five in a row are needed")
	require.Equal(t, Calm, after(memory, 0.1))
	require.Equal(t, 2, strings.Count(log(), "level="), "two lines: up and down")

	require.Equal(t, Critical, after(memory, 0.99))
	require.Equal(t, Critical, after(memory, 0, 0, 0, 0))
	require.Equal(t, High, after(memory, 0))
	require.Equal(t, Elevated, after(memory, 0, 0, 0, 0, 0))
	require.Equal(t, Calm, after(memory, 0, 0, 0, 0, 0))

	require.Equal(t, Calm, after(cpu, 9, 9, 0, 9, 9), "a burst is no shortage")
	require.Equal(t, Critical, after(cpu, 9))
	require.Equal(t, Critical, after(memory, 0.81), "the worst of the sources")
	require.Equal(t, Critical, after(cpu, 2.8, 2.8, 2.8, 2.8, 2.8, 2.8))
	require.Equal(t, Critical, after(cpu, 0, 0, 0, 0))
	require.Equal(t, High, after(cpu, 0))
}

func TestSourcesThatFail(t *testing.T) {
	d := &dial{value: 1}
	p, log, _ := newPressure(t, PressureConfig{Sources: []Source{{Name: "memory", Thresholds: Thresholds{0.8, 0.9, 0.95}, Read: d.read}}})
	p.sample()
	require.Equal(t, Critical, p.Level())
	d.err = errors.New("gone")
	for range 15 {
		p.sample()
	}
	require.Equal(t, Calm, p.Level(), "what cannot be read refuses nobody")
	require.Equal(t, 1, strings.Count(log(), "cannot be read"))
	d.value, d.err = math.NaN(), nil
	p.sample()
	require.Equal(t, Calm, p.Level())
	d.err = errors.New("gone again")
	p.sample()
	require.Equal(t, 2, strings.Count(log(), "cannot be read"))
}

func TestPressureRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dial{value: 2}
		p, err := NewPressure(PressureConfig{Sources: []Source{{Name: "memory", Thresholds: Thresholds{1, 2, 3}, Read: d.read}}})
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		<-time.After(500 * time.Millisecond)
		require.Equal(t, Calm, p.Level())
		<-time.After(600 * time.Millisecond)
		require.Equal(t, High, p.Level())
		stop()
		require.NoError(t, <-ended)
	})
	ticks := make(chan time.Time)
	d := &dial{value: 3}
	p, err := NewPressure(PressureConfig{Ticks: ticks, Sources: []Source{{Name: "memory", Thresholds: Thresholds{1, 2, 3}, Read: d.read}}})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	ticks <- time.Time{}
	ticks <- time.Time{} // taken when the first sample is complete
	require.Equal(t, Critical, p.Level())
	stop()
	require.NoError(t, <-ended)
}

func TestNewPressureRefuses(t *testing.T) {
	for _, cfg := range []PressureConfig{{Interval: -1}, {Sources: []Source{{}}}, {Sources: []Source{{Thresholds: Thresholds{3, 2, 1}}}}, {Sources: []Source{{Thresholds: Thresholds{1, 2, 3}, Samples: -1}}}} {
		_, err := NewPressure(cfg)
		require.ErrorIs(t, err, errs.ConfigInvalid)
	}
}

func files(all map[string]string) fs.FS {
	m := fstest.MapFS{}
	for name, text := range all {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func TestMemoryOfControlGroups(t *testing.T) {
	for name, c := range map[string]struct {
		files       map[string]string
		used, limit float64
	}{
		"none": {map[string]string{}, 0, 0},
		"version 2, in a container": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
			"sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "900\n", "sys/fs/cgroup/memory.stat": "anon 700\ninactive_file 150\nactive_file 50\n",
		}, 750, 1000},
		"version 2, the slice above is nearer to its limit": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/gw.service\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
			"sys/fs/cgroup/system.slice/gw.service/memory.max": "max\n", "sys/fs/cgroup/system.slice/gw.service/memory.current": "10\n",
			"sys/fs/cgroup/system.slice/memory.max": "400\n", "sys/fs/cgroup/system.slice/memory.current": "100\n",
		}, 100, 400},
		"version 1, the path is the host's": {map[string]string{
			"proc/self/cgroup":                               "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n1:name=systemd:/docker/abc\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":     "2000\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes":     "1500\n",
			"sys/fs/cgroup/memory/memory.stat":               "inactive_file 3\ntotal_inactive_file 500\n",
			"sys/fs/cgroup/memory/docker/other/memory.limit": "",
		}, 1000, 2000},
		"version 1, without a limit": {map[string]string{
			"proc/self/cgroup": "5:memory:/x\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1500\n",
		}, 0, 0},
		"both, memory in version 1": {map[string]string{
			"proc/self/cgroup": "4:memory:/a\n0::/a\n", "sys/fs/cgroup/unified/cgroup.controllers": "\n", "sys/fs/cgroup/unified/a/cgroup.procs": "1\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "100\n", "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "50\n",
		}, 50, 100},
		"nonsense": {map[string]string{"proc/self/cgroup": "x\n0:\n::::\n0::/../../etc\n", "sys/fs/cgroup/cgroup.controllers": "", "sys/fs/cgroup/memory.max": "many\n"}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			used, limit, err := newCgroups(files(c.files)).memory()
			require.Equal(t, []float64{c.used, c.limit}, []float64{used, limit})
			require.Equal(t, c.limit == 0, errors.Is(err, errNoLimit))
		})
	}
}

func TestSourcesOfCPU(t *testing.T) {
	root := map[string]string{
		"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory\n", "sys/fs/cgroup/cpu.max": "200000 100000\n",
		"sys/fs/cgroup/cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2000000\n",
		"sys/fs/cgroup/cpu.stat":     "usage_usec 5\nnr_periods 100\nnr_throttled 10\nthrottled_usec 7\n",
	}
	names := func(f fs.FS) (all []string) {
		for _, s := range sources(f) {
			all = append(all, s.Name)
		}
		return all
	}
	require.Equal(t, []string{"memory", "scheduler"}, names(files(nil)))
	require.Equal(t, []string{"memory", "scheduler", "cpu_stalled", "cpu_throttled"}, names(files(root)))

	throttled := &throttleSource{groups: newCgroups(files(root))}
	v, err := throttled.read()
	require.NoError(t, err)
	require.Zero(t, v, "the first sample begins")
	root["sys/fs/cgroup/cpu.stat"] = "nr_periods 110\nnr_throttled 17\n"
	throttled.groups.files = files(root)
	v, err = throttled.read()
	require.NoError(t, err)
	require.InDelta(t, 0.7, v, 1e-9)
	v, err = throttled.read()
	require.NoError(t, err)
	require.Zero(t, v, "no period went by")

	stalled, err := newCgroups(files(root)).stalled()
	require.NoError(t, err)
	require.InDelta(t, 2, stalled, 1e-9)
	var i interval
	require.Zero(t, i.part(10, 2))
	require.InDelta(t, 0.5, i.part(12, 3), 1e-9)
	require.InDelta(t, 1, i.part(13, 5), 1e-9, "never above all of the time")
	require.Zero(t, i.part(14, 4), "a counter that went back began anew")
}

func TestPercentile(t *testing.T) {
	buckets := []float64{math.Inf(-1), 0, 0.001, 0.01, 0.1, math.Inf(1)}
	require.Zero(t, percentile99([]uint64{0, 0, 0, 0, 9}, buckets), "too few")
	require.Equal(t, 0.1, percentile99([]uint64{0, 98, 0, 0, 2}, buckets))
	require.Equal(t, 0.0, percentile99([]uint64{0, 9_901, 0, 0, 99}, buckets))
	require.Equal(t, 0.001, percentile99([]uint64{0, 9_800, 150, 40, 10}, buckets))
	require.Equal(t, 0.0, percentile99([]uint64{1000, 0, 0, 0, 0}, buckets))
}

// The process's own sources can be read, and see what they are for.
func TestSourcesOfThisProcess(t *testing.T) {
	for _, s := range Sources() {
		for range 2 {
			v, err := s.Read()
			require.NoError(t, err, s.Name)
			require.GreaterOrEqual(t, v, 0.0, s.Name)
		}
	}
	ballast := make([]byte, 64<<20)
	runtime.GC()
	before := debug.SetMemoryLimit(128 << 20)
	defer debug.SetMemoryLimit(before)
	m := &memorySource{groups: newCgroups(files(nil))}
	v, err := m.read()
	require.NoError(t, err)
	require.Greater(t, v, 0.5)
	runtime.KeepAlive(ballast)
	runtime.GC()
	garbage := v
	v, err = m.read()
	require.NoError(t, err)
	require.Less(t, v, garbage-0.4, "what is not alive is no shortage")
}

// A scheduler that has more to do than CPUs shows.
func TestSchedulerSource(t *testing.T) {
	s := new(schedulerSource)
	_, err := s.read()
	require.NoError(t, err)
	stop := make(chan struct{})
	ended := make(chan struct{})
	const hogs = 200
	for range hogs {
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
					for start := time.Now(); time.Since(start) < time.Millisecond; {
					}
					runtime.Gosched()
				}
			}
		}()
	}
	require.Eventually(t, func() bool {
		v, err := s.read()
		return err == nil && v > 0.02
	}, 30*time.Second, 500*time.Millisecond)
	close(stop)
	for range hogs {
		<-ended
	}
}

func BenchmarkShed(b *testing.B) {
	p, err := NewPressure(PressureConfig{})
	require.NoError(b, err)
	l, err := New(Config{Tiers: tiers(Tier{}), Pressure: p, Exempt: []Exemption{{Tenants: []string{"ops/*"}}}})
	require.NoError(b, err)
	b.ReportAllocs()
	b.SetParallelism(goroutines / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Shed("a", link.Low); err != nil {
				b.Error(err)
			}
		}
	})
}
