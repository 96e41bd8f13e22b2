package report

import (
	"cmp"
	"slices"
	"strings"
)

// Target is what the product shall reach in one metric.
type Target struct {
	Name      string  // what it means, in a few words
	Criterion string  // id in the requirements
	Metric    string  // id of the metric
	Limit     float64 // in the metric's unit, or a factor when Of is set
	Of        Base    // what Limit is a factor of
	Peer      string  // with OfPeer: whose figure
	Plus      string  // id of a metric whose figure of the product is added to Limit; empty: none
	Who       string  // the variant of the product that shall reach it; empty: the product as it comes
	Goal      bool    // wished for, not demanded
}

// Base is what a relative target is measured against.
type Base int

// The bases of targets.
const (
	Absolute    Base = iota // the limit is a figure itself
	OfReference             // times the reference's figure
	OfBestPeer              // times the best figure of the peers that are neither a bare relay nor the product
	OfPeer                  // times the figure of one peer
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
			r.Checks = append(r.Checks, r.Metrics[at].check(t, r.own(t.Plus)))
		}
	}
}

// own is the product's figure in a metric; 0 without one.
func (r *Report) own(metric string) float64 {
	for _, m := range r.Metrics {
		if m.ID == metric {
			return m.Figures[Product].Median
		}
	}
	return 0
}

// Missed says whether a demanded target was measured and missed.
func (r *Report) Missed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.State == Missed && !c.Goal })
}

func (m *Metric) check(t Target, plus float64) Check {
	c := Check{
		Name: t.Name, Criterion: t.Criterion, Metric: m.ID, Unit: m.Unit,
		AtLeast: m.Higher, Goal: t.Goal, State: Unmeasured,
	}
	base, known := 1.0, true
	if t.Of != Absolute {
		c.Against, base, known = m.base(t)
	}
	own, measured := m.Figures[cmp.Or(t.Who, Product)]
	c.Limit, c.Measured = t.Limit*base+plus, own.Median
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
func (m *Metric) base(t Target) (peer string, figure float64, ok bool) {
	switch t.Of {
	case OfReference:
		f, ok := m.Figures[Reference]
		return Reference, f.Median, ok
	case OfPeer:
		f, ok := m.Figures[t.Peer]
		return t.Peer, f.Median, ok
	}
	for name, f := range m.Figures {
		if strings.HasPrefix(name, Product) || name == Reference || name == "relay-tcp" {
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
