package load

import (
	"context"
	"fmt"
	"time"

	"fairlead/bench/peers"
)

const gib = 1 << 30

// throughput moves content up and down over one and many streams.
func throughput(sizes Sizes) Scenario {
	s := Scenario{Name: "throughput"}
	id := func(streams int, up bool, figure string) string {
		return fmt.Sprintf("throughput.%d.%s.%s", streams, direction(up), figure)
	}
	for _, streams := range sizes.Streams {
		for _, up := range []bool{true, false} {
			what := fmt.Sprintf("%d %s %s", streams, plural(streams, "stream"), direction(up))
			s.Metrics = append(s.Metrics,
				Metric{id(streams, up, "mb_s"), "Throughput, " + what, "MB/s", true, false},
				Metric{id(streams, up, "cpu"), "CPU per GiB, both sides, " + what, "s/GiB", false, false},
				Metric{id(streams, up, "cpu_sidecar"), "CPU per GiB, sidecar, " + what, "s/GiB", false, true},
				Metric{id(streams, up, "cpu_gateway"), "CPU per GiB, gateway, " + what, "s/GiB", false, true})
		}
	}
	s.Run = func(ctx context.Context, b *Bench) (samples []Sample, err error) {
		for _, streams := range sizes.Streams {
			for _, up := range []bool{true, false} {
				job := Job{Kind: Transfer, Addr: b.In.Addrs.Normal, Streams: streams, Bytes: sizes.Bytes, Up: up, Down: !up}
				out, sidecar, gateway, err := b.transfer(ctx, job)
				if err != nil {
					return nil, err
				}
				perGiB := func(cpu time.Duration) float64 { return cpu.Seconds() * gib / float64(out.Bytes) }
				samples = append(samples,
					Sample{id(streams, up, "mb_s"), out.MBPerSecond()},
					Sample{id(streams, up, "cpu"), perGiB(sidecar + gateway)},
					Sample{id(streams, up, "cpu_sidecar"), perGiB(sidecar)},
					Sample{id(streams, up, "cpu_gateway"), perGiB(gateway)})
			}
		}
		return samples, nil
	}
	return s
}

// transfer runs a small transfer that is not measured, so that windows and pools have grown, and then job.
func (b *Bench) transfer(ctx context.Context, job Job) (out Outcome, sidecar, gateway time.Duration, err error) {
	warm := job
	warm.Bytes = max(job.Bytes/16, int64(job.Streams))
	if _, err = b.Do(ctx, warm); err != nil {
		return out, 0, 0, err
	}
	sidecar, gateway, err = b.measured(ctx, func() error {
		out, err = b.Do(ctx, job)
		return err
	})
	return out, sidecar, gateway, err
}

// opensScenario opens and closes connections: one after another on an idle tunnel, then many at once.
func opensScenario(sizes Sizes) Scenario {
	return Scenario{
		Name: "opens",
		Metrics: []Metric{
			{"opens.single.p95", "Open to first byte, one at a time, p95", "ms", false, false},
			{"opens.per_s", fmt.Sprintf("Opens per second, %d at once", sizes.Openers), "1/s", true, false},
			{"opens.p50", "Open to first byte, many at once, p50", "ms", false, true},
			{"opens.p95", "Open to first byte, many at once, p95", "ms", false, false},
			{"opens.p99", "Open to first byte, many at once, p99", "ms", false, true},
			{"opens.cpu_sidecar", "CPU per open, sidecar", "µs", false, false},
			{"opens.cpu_gateway", "CPU per open, gateway", "µs", false, false},
		},
		Run: func(ctx context.Context, b *Bench) ([]Sample, error) {
			one, err := b.Do(ctx, Job{Kind: Opens, Addr: b.In.Addrs.Normal, Workers: 1, Count: max(sizes.Opens/20, 20)})
			if err != nil {
				return nil, err
			}
			var many Outcome
			sidecar, gateway, err := b.measured(ctx, func() (err error) {
				many, err = b.Do(ctx, Job{Kind: Opens, Addr: b.In.Addrs.Normal, Workers: sizes.Openers, Count: sizes.Opens})
				return err
			})
			if err != nil {
				return nil, err
			}
			perOpen := func(cpu time.Duration) float64 { return float64(cpu.Microseconds()) / float64(many.Count) }
			return []Sample{
				{"opens.single.p95", ms(one.Latency.P95)},
				{"opens.per_s", float64(many.Count) / many.Seconds},
				{"opens.p50", ms(many.Latency.P50)}, {"opens.p95", ms(many.Latency.P95)}, {"opens.p99", ms(many.Latency.P99)},
				{"opens.cpu_sidecar", perOpen(sidecar)}, {"opens.cpu_gateway", perOpen(gateway)},
			}, nil
		},
	}
}

// idle keeps many connections open that have nothing to say. The counts are measured one after another on the same
// instance, with all connections closed in between; the memory before is that before the first.
func idle(sizes Sizes) Scenario {
	s := Scenario{Name: "idle"}
	for _, n := range sizes.Idle {
		s.Metrics = append(s.Metrics,
			Metric{fmt.Sprintf("idle.%d.sidecar", n), fmt.Sprintf("Memory per idle stream of %d, sidecar", n), "KiB", false, false},
			Metric{fmt.Sprintf("idle.%d.gateway", n), fmt.Sprintf("Memory per idle stream of %d, gateway", n), "KiB", false, false})
	}
	s.Run = func(ctx context.Context, b *Bench) (samples []Sample, err error) {
		// A few connections first, so that what is made once is there before.
		if _, err := b.Do(ctx, Job{Kind: Opens, Addr: b.In.Addrs.Normal, Workers: 4, Count: 16}); err != nil {
			return nil, err
		}
		before, err := b.used(ctx)
		if err != nil {
			return nil, err
		}
		for _, n := range sizes.Idle {
			if b.In.MaxStreams > 0 && n > b.In.MaxStreams {
				b.Note(fmt.Sprintf("%d idle streams are not measured: it carries at most %d here", n, b.In.MaxStreams))
				continue
			}
			after, err := b.holding(ctx, n, sizes)
			if err != nil {
				return samples, fmt.Errorf("%d idle streams: %w", n, err)
			}
			samples = append(samples,
				Sample{fmt.Sprintf("idle.%d.sidecar", n), kibEach(after.sidecar.PSS-before.sidecar.PSS, n)},
				Sample{fmt.Sprintf("idle.%d.gateway", n), kibEach(after.gateway.PSS-before.gateway.PSS, n)})
		}
		return samples, nil
	}
	return s
}

// holding measures both sides while n connections are held.
func (b *Bench) holding(ctx context.Context, n int, sizes Sizes) (sideUsage, error) {
	held, err := b.Begin(ctx, Job{Kind: Hold, Addr: b.In.Addrs.Normal, Workers: sizes.Openers, Count: n})
	if err != nil {
		return sideUsage{}, err
	}
	defer held.Stop()
	if err := sleep(ctx, sizes.IdleRest); err != nil {
		return sideUsage{}, err
	}
	after, err := b.used(ctx)
	if err != nil {
		return sideUsage{}, err
	}
	out, err := held.End()
	if err == nil && out.Count != n {
		err = fmt.Errorf("only %d were held", out.Count)
	}
	return after, err
}

// rtt moves content over one stream on a long path.
func rtt(sizes Sizes) Scenario {
	what := fmt.Sprintf("One stream, %d ms round trip, ", sizes.RoundTrip.Milliseconds())
	return Scenario{
		Name: "rtt",
		Metrics: []Metric{
			{"rtt.up.mb_s", what + "up", "MB/s", true, false},
			{"rtt.down.mb_s", what + "down", "MB/s", true, false},
		},
		Path: func(target string) (*Proxy, error) { return NewDelay(target, sizes.RoundTrip/2) },
		Run: func(ctx context.Context, b *Bench) (samples []Sample, err error) {
			for _, up := range []bool{true, false} {
				out, err := b.Do(ctx, Job{Kind: Steady, Addr: b.In.Addrs.Normal, Up: up, Down: !up, Warmup: sizes.Warmup, Duration: sizes.Steady})
				if err != nil {
					return nil, err
				}
				samples = append(samples, Sample{"rtt." + direction(up) + ".mb_s", out.MBPerSecond()})
			}
			return samples, nil
		},
	}
}

// interactive types on a slow link, idle and full.
func interactive(sizes Sizes) Scenario {
	what := fmt.Sprintf("Echo on a link of %d MiB/s, ", sizes.Limit>>20)
	return Scenario{
		Name: "interactive",
		Metrics: []Metric{
			{"interactive.idle.p50", what + "idle, p50", "ms", false, true},
			{"interactive.busy.p50", what + "during a low-priority upload, p50", "ms", false, false},
			{"interactive.busy.p95", what + "during a low-priority upload, p95", "ms", false, true},
			{"interactive.bulk.mb_s", "The upload meanwhile", "MB/s", true, true},
		},
		Path: func(target string) (*Proxy, error) { return NewShape(target, sizes.Limit) },
		Run: func(ctx context.Context, b *Bench) ([]Sample, error) {
			typing := Job{Kind: Echo, Addr: b.In.Addrs.High, Duration: sizes.Echo, Pause: 5 * time.Millisecond}
			upload := Job{Kind: Bulk, Addr: b.In.Addrs.Low, Streams: 1, Up: true, Warmup: sizes.Warmup}
			free, busy, bulk, err := b.echoes(ctx, typing, upload)
			if err != nil {
				return nil, err
			}
			return []Sample{
				{"interactive.idle.p50", ms(free.Latency.P50)},
				{"interactive.busy.p50", ms(busy.Latency.P50)},
				{"interactive.busy.p95", ms(busy.Latency.P95)},
				{"interactive.bulk.mb_s", bulk.MBPerSecond()},
			}, nil
		},
	}
}

// echoScenario measures round trips on a fast path, idle and under a download at full rate.
func echoScenario(sizes Sizes) Scenario {
	return Scenario{
		Name: "echo",
		Metrics: []Metric{
			{"echo.idle.p50", "Echo, idle, p50", "µs", false, false},
			{"echo.busy.p50", "Echo during a download at full rate, p50", "µs", false, false},
			{"echo.busy.p95", "Echo during a download at full rate, p95", "µs", false, true},
		},
		Run: func(ctx context.Context, b *Bench) ([]Sample, error) {
			echo := Job{Kind: Echo, Addr: b.In.Addrs.High, Duration: sizes.Echo, Pause: time.Millisecond}
			full := Job{Kind: Bulk, Addr: b.In.Addrs.Normal, Streams: 1, Down: true, Warmup: sizes.Warmup}
			free, busy, _, err := b.echoes(ctx, echo, full)
			if err != nil {
				return nil, err
			}
			return []Sample{
				{"echo.idle.p50", us(free.Latency.P50)},
				{"echo.busy.p50", us(busy.Latency.P50)},
				{"echo.busy.p95", us(busy.Latency.P95)},
			}, nil
		},
	}
}

// echoes measures job without and with load beside it.
func (b *Bench) echoes(ctx context.Context, job, load Job) (free, busy, bulk Outcome, err error) {
	if free, err = b.Do(ctx, job); err != nil {
		return free, busy, bulk, err
	}
	running, err := b.Begin(ctx, load)
	if err != nil {
		return free, busy, bulk, err
	}
	defer running.Stop()
	if busy, err = b.Do(ctx, job); err != nil {
		return free, busy, bulk, err
	}
	if bulk, err = running.End(); err == nil && bulk.Bytes == 0 {
		err = fmt.Errorf("the load beside the echoes moved nothing")
	}
	return free, busy, bulk, err
}

func direction(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func kibEach(bytes int64, n int) float64 { return float64(bytes) / 1024 / float64(n) }

// hasAccess is Fits for scenarios that open tunnels themselves.
func hasAccess(in *peers.Instance) (bool, string) {
	if in.Access == nil {
		return false, "the peer has no tunnels to open"
	}
	return true, ""
}
