package report

import "slices"

// Target is what the product shall reach in one metric.
type Target struct {
	Name      string  // what it means, in a few words
	Criterion string  // id in the requirements
	Metric    string  // id of the metric
	Limit     float64 // in the metric's unit, or a factor when Of is set
	Of        Base    // what Limit is a factor of
	Goal      bool    // wished for, not demanded
}

// Base is what a relative target is measured against.
type Base int

// The bases of targets.
const (
	Absolute    Base = iota // the limit is a figure itself
	OfReference             // times the reference's figure
	OfBestPeer              // times the best figure of the peers that are neither a bare relay nor the product
)

// State is how a check ended.
type State string

// The states of checks.
const (
	Reached    State = "reached"
	Missed     State = "missed"
	Unmeasured State = "not measured"
)

// Check is a target with what was measured.
type Check struct {
	Name      string  `json:"name"`
	Criterion string  `json:"criterion"`
	Metric    string  `json:"metric"`
	Unit      string  `json:"unit"`
	AtLeast   bool    `json:"at_least"`          // the limit is a lower one
	Limit     float64 `json:"limit"`             // in Unit; 0 when it is relative to what was not measured
	Against   string  `json:"against,omitempty"` // the peer whose figure the limit comes from
	Measured  float64 `json:"measured"`
	Goal      bool    `json:"goal"`
	State     State   `json:"state"`
}

// Check compares the product's figures with targets and keeps the result. Targets in metrics that this comparison did
// not have are left out.
func (r *Report) Check(targets []Target) {
	r.Checks = nil
	for _, t := range targets {
		at := slices.IndexFunc(r.Metrics, func(m Metric) bool { return m.ID == t.Metric })
		if at >= 0 {
			r.Checks = append(r.Checks, r.Metrics[at].check(t))
		}
	}
}

// Missed says whether a demanded target was measured and missed.
func (r *Report) Missed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.State == Missed && !c.Goal })
}

func (m *Metric) check(t Target) Check {
	c := Check{
		Name: t.Name, Criterion: t.Criterion, Metric: m.ID, Unit: m.Unit,
		AtLeast: m.Higher, Goal: t.Goal, State: Unmeasured,
	}
	base, known := 1.0, true
	if t.Of != Absolute {
		c.Against, base, known = m.base(t.Of)
	}
	own, measured := m.Figures[Product]
	c.Limit, c.Measured = t.Limit*base, own.Median
	if !known || !measured {
		return c
	}
	c.State = Missed
	if c.AtLeast && c.Measured >= c.Limit || !c.AtLeast && c.Measured <= c.Limit {
		c.State = Reached
	}
	return c
}

// base finds the figure that a relative target is measured against.
func (m *Metric) base(of Base) (peer string, figure float64, ok bool) {
	if of == OfReference {
		f, ok := m.Figures[Reference]
		return Reference, f.Median, ok
	}
	for name, f := range m.Figures {
		if name == Product || name == Reference || name == "relay-tcp" {
			continue
		}
		better := f.Median < figure
		if m.Higher {
			better = f.Median > figure
		}
		if !ok || better || f.Median == figure && name < peer {
			peer, figure, ok = name, f.Median, true
		}
	}
	return peer, figure, ok
}
