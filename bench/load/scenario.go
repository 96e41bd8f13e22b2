package load

import (
	"context"
	"fmt"
	"time"

	"fairlead/bench/peers"
	"fairlead/bench/proc"
)

// Metric is one figure that a scenario measures.
type Metric struct {
	ID     string // scenario and figure, such as "throughput.64.down.mb_s"
	Title  string
	Unit   string
	Higher bool // more is better
	Detail bool // for the table and the file, not for the picture
}

// Sample is one measured value of a metric.
type Sample struct {
	Metric string
	Value  float64
}

// Scenario is one kind of load and what it measures.
type Scenario struct {
	Name    string
	Metrics []Metric
	// Path makes the proxy between a peer's two sides; nil when they are connected directly.
	Path func(target string) (*Proxy, error)
	// Fits says whether an instance can be measured, and why not; nil when each can.
	Fits func(in *peers.Instance) (bool, string)
	// Run measures. The instance is fresh and has passed one echo. Samples beside an error are good ones.
	Run func(ctx context.Context, b *Bench) ([]Sample, error)
}

// Sizes bound the loads.
type Sizes struct {
	Bytes     int64 // of one transfer, in all its streams together
	Streams   []int
	Opens     int // connections
	Openers   int // that open at once
	Idle      []int
	IdleRest  time.Duration // between the last echo and reading the memory
	Steady    time.Duration
	Warmup    time.Duration
	RoundTrip time.Duration
	Limit     int64 // bytes a second of the slow link
	Echo      time.Duration
	Tunnels   []int
}

// Full are the sizes of a run whose figures are worth publishing.
func Full() Sizes {
	return Sizes{
		Bytes: 2 << 30, Streams: []int{1, 64}, Opens: 20000, Openers: 64,
		Idle: []int{1000, 10000}, IdleRest: 5 * time.Second,
		Steady: 6 * time.Second, Warmup: 2 * time.Second, RoundTrip: 100 * time.Millisecond,
		Limit: 4 << 20, Echo: 4 * time.Second, Tunnels: []int{1000, 10000},
	}
}

// Quick are sizes for tests and CI: every path is taken, the figures are rough.
func Quick() Sizes {
	return Sizes{
		Bytes: 96 << 20, Streams: []int{1, 64}, Opens: 1500, Openers: 64,
		Idle: []int{200}, IdleRest: 300 * time.Millisecond,
		Steady: time.Second, Warmup: 500 * time.Millisecond, RoundTrip: 100 * time.Millisecond,
		Limit: 4 << 20, Echo: time.Second, Tunnels: []int{100},
	}
}

// Files is how many open files a process needs at these sizes: a relay has two for each connection.
func (s Sizes) Files() uint64 {
	most := 1000
	for _, n := range append(s.Idle, s.Tunnels...) {
		most = max(most, n)
	}
	return uint64(2*most + 1000)
}

// Catalogue lists the scenarios at the given sizes. open may be nil: then there is no idle-tunnels.
func Catalogue(sizes Sizes, open TunnelOpener) []Scenario {
	list := []Scenario{throughput(sizes), opensScenario(sizes), idle(sizes), rtt(sizes), interactive(sizes), echoScenario(sizes)}
	if open != nil {
		list = append(list, IdleTunnels(sizes, open))
	}
	return list
}

// Bench is what a scenario measures with.
type Bench struct {
	Runner
	In   *peers.Instance
	Note func(text string) // tells the reader what was not measured, and why
}

// sideUsage is what the two sides have used at a moment.
type sideUsage struct{ sidecar, gateway proc.Usage }

// used waits until both sides are quiet, so that work which the load left behind is counted, and measures them.
func (b *Bench) used(ctx context.Context) (sideUsage, error) {
	if err := b.quiet(ctx); err != nil {
		return sideUsage{}, err
	}
	var u sideUsage
	var err error
	if u.sidecar, err = proc.Measure(peers.PIDs(b.In.Sidecar)...); err != nil {
		return u, fmt.Errorf("measure the sidecar's side: %w", err)
	}
	if u.gateway, err = proc.Measure(peers.PIDs(b.In.Gateway)...); err != nil {
		return u, fmt.Errorf("measure the gateway's side: %w", err)
	}
	return u, nil
}

// quiet waits until both sides together use less than a fifth of a core, for 3 s at most.
func (b *Bench) quiet(ctx context.Context) error {
	const look, most = 100 * time.Millisecond, 30
	pids := append(peers.PIDs(b.In.Sidecar), peers.PIDs(b.In.Gateway)...)
	before, err := proc.CPU(pids...)
	for range most {
		if err != nil {
			return err
		}
		if err = sleep(ctx, look); err != nil {
			return err
		}
		var now time.Duration
		if now, err = proc.CPU(pids...); now-before < look/5 {
			return err
		}
		before = now
	}
	return err
}

// measured runs do and returns what both sides used meanwhile, CPU only.
func (b *Bench) measured(ctx context.Context, do func() error) (sidecar, gateway time.Duration, err error) {
	before, err := b.used(ctx)
	if err != nil {
		return 0, 0, err
	}
	if err := do(); err != nil {
		return 0, 0, err
	}
	after, err := b.used(ctx)
	return after.sidecar.CPU - before.sidecar.CPU, after.gateway.CPU - before.gateway.CPU, err
}
