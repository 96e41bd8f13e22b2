package limit

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Level is how short of memory or CPU the process is.
type Level int32

// The levels. Each refuses what the ones before it refuse, too. What is open goes on at any level.
const (
	Calm     Level = iota
	Elevated       // new streams of low priority are refused
	High           // also those of normal priority
	Critical       // all new streams, and new tunnels
)

// String is the level's name in logs.
func (l Level) String() string {
	switch l {
	case Calm:
		return "none"
	case Elevated:
		return "elevated"
	case High:
		return "high"
	case Critical:
		return "critical"
	}
	return fmt.Sprintf("level %d", int32(l))
}

// Thresholds are the values of a source from which on it is at Elevated, High and Critical; ascending.
type Thresholds [3]float64

// Source is something that shows pressure.
type Source struct {
	Name       string // in metrics and logs
	Thresholds Thresholds
	// Samples is how many in a row must be at a level or above for the source to reach it; 0: 1.
	Samples int
	// Read is called once in each interval, by one goroutine. An error counts as no pressure, and is logged when it begins.
	Read func() (float64, error)
}

const (
	pressureInterval = time.Second
	// A source leaves a level when its value has been below calmBelow of its threshold for calmSamples in a row, so that
	// what was shed does not come back at once to be shed again.
	calmBelow   = 0.9
	calmSamples = 5
)

// PressureConfig is what a Pressure needs.
type PressureConfig struct {
	Sources  []Source
	Interval time.Duration    // between samples; 0: 1 s
	Ticks    <-chan time.Time // when to take samples, in place of Interval; nil: each Interval
	Logger   *slog.Logger     // nil: nothing is logged
	Metrics  *metrics.Set     // nil: counted nowhere
}

// Pressure says what has to be refused because the process is short of memory or CPU. A nil Pressure refuses nothing.
type Pressure struct {
	cfg     PressureConfig
	level   atomic.Int32
	sources []*gauge
	refused *metrics.Counter
}

// NewPressure makes a Pressure; it is at Calm until Run takes samples. Errors are errs.ConfigInvalid.
func NewPressure(cfg PressureConfig) (*Pressure, error) {
	if cfg.Interval < 0 {
		return nil, errs.New(errs.ConfigInvalid, "the interval of pressure samples must not be negative")
	}
	if cfg.Interval == 0 {
		cfg.Interval = pressureInterval
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pressure{cfg: cfg, refused: refusals(cfg.Metrics, Shedding)}
	cfg.Metrics.NewGauge("fairlead_gateway_pressure", func() float64 { return float64(p.Level()) })
	for _, s := range cfg.Sources {
		if !slices.IsSorted(s.Thresholds[:]) || s.Thresholds[0] <= 0 || s.Samples < 0 {
			return nil, errs.New(errs.ConfigInvalid, "pressure source %q needs ascending thresholds over 0, not %v", s.Name, s.Thresholds)
		}
		g := &gauge{Source: s}
		p.sources = append(p.sources, g)
		cfg.Metrics.NewGauge(fmt.Sprintf("fairlead_gateway_pressure_source{source=%q}", s.Name), func() float64 {
			return math.Float64frombits(g.value.Load())
		})
	}
	return p, nil
}

// Run takes samples until ctx ends. It returns nil.
func (p *Pressure) Run(ctx context.Context) error {
	ticks := p.cfg.Ticks
	if ticks == nil {
		t := time.NewTicker(p.cfg.Interval)
		defer t.Stop()
		ticks = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
			p.sample()
		}
	}
}

// Level is what the last samples amount to.
func (p *Pressure) Level() Level {
	if p == nil {
		return Calm
	}
	return Level(p.level.Load())
}

// Admit refuses a new stream of the priority if the pressure is too high for it. The error is errs.Overloaded with
// RetryAfter.
func (p *Pressure) Admit(priority link.Priority) error {
	if p == nil || p.Level() == Calm { // the hot path
		return nil
	}
	return p.admit(Critical-Level(min(priority, link.Low)), fmt.Sprintf("streams of %v priority", min(priority, link.Low)))
}

// AdmitTunnel refuses a new tunnel at Critical. Tunnels that are resumed are not new.
func (p *Pressure) AdmitTunnel() error {
	if p.Level() < Critical {
		return nil
	}
	return p.admit(Critical, "tunnels")
}

// admit refuses from a level on.
func (p *Pressure) admit(from Level, what string) error {
	level := p.Level()
	if level < from {
		return nil
	}
	p.refused.Inc()
	return errs.New(errs.Overloaded, "the gateway is short of memory or CPU (pressure: %v) and takes no new %s", level, what).
		After(about(calmSamples * p.cfg.Interval))
}

// Shed refuses a new stream of the tenant under pressure, unless the tenant is exempt. The error is errs.Overloaded with
// RetryAfter.
func (l *Limiter) Shed(tenant string, priority link.Priority) error {
	if l.pressure.Level() == Calm || l.Exempt(Shedding, tenant) {
		return nil
	}
	return l.pressure.Admit(priority)
}

// ShedTunnel is Shed for a new tunnel.
func (l *Limiter) ShedTunnel(tenant string) error {
	if l.pressure.Level() < Critical || l.Exempt(Shedding, tenant) {
		return nil
	}
	return l.pressure.AdmitTunnel()
}

// sample takes one sample of each source; the worst of them is the level.
func (p *Pressure) sample() {
	level, worst := Calm, (*gauge)(nil)
	for _, g := range p.sources {
		if err := g.sample(); err != nil {
			p.cfg.Logger.Warn("a source of pressure cannot be read", "source", g.Name, "error", err.Error())
		}
		if g.level > level {
			level, worst = g.level, g
		}
	}
	before := Level(p.level.Swap(int32(level)))
	if level == before {
		return
	}
	attrs := []any{"pressure", level.String(), "before", before.String()}
	if worst != nil {
		attrs = append(attrs, "source", worst.Name, "value", math.Float64frombits(worst.value.Load()))
	}
	if level > before {
		p.cfg.Logger.Warn("pressure rises: new streams are refused by priority", attrs...)
	} else {
		p.cfg.Logger.Info("pressure falls", attrs...)
	}
}

// gauge is a source with what it showed. Only the value is read by others than the sampling goroutine.
type gauge struct {
	Source
	value   atomic.Uint64 // bits of a float64
	level   Level
	above   [Critical]int // samples in a row at a level or above, by level - 1
	below   int           // samples in a row that were well below the level
	failing bool
}

// sample reads the source and moves its level. The error is told once, when reading begins to fail.
func (g *gauge) sample() error {
	v, err := g.Read()
	first := err != nil && !g.failing
	g.failing = err != nil
	if err != nil || math.IsNaN(v) {
		v = 0
	}
	g.value.Store(math.Float64bits(v))
	g.move(v)
	if first {
		return err
	}
	return nil
}

func (g *gauge) move(v float64) {
	for i, threshold := range g.Thresholds {
		if v < threshold {
			g.above[i] = 0
			continue
		}
		if g.above[i]++; g.above[i] >= g.Samples && Level(i)+1 > g.level {
			g.level, g.below = Level(i)+1, 0
		}
	}
	if g.level == Calm || v >= calmBelow*g.Thresholds[g.level-1] {
		g.below = 0
		return
	}
	if g.below++; g.below >= calmSamples {
		g.level, g.below = g.level-1, 0
	}
}
