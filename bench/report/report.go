// Package report shows what a comparison measured: as a table, as JSON, as a picture, and against targets.
package report

import (
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Reference is the peer that others are compared with: the bare TLS relay, the least that an encrypting program does.
const Reference = "relay-tls"

// Product is the peer that the targets are about.
const Product = "fairlead"

// Report is the result of one comparison.
type Report struct {
	Made    time.Time `json:"made"`
	Machine Machine   `json:"machine"`
	Runs    int       `json:"runs"`  // of which each figure is the median
	Quick   bool      `json:"quick"` // small sizes: the figures are rough
	Peers   []string  `json:"peers"` // in the order shown
	Metrics []Metric  `json:"metrics"`
	Notes   []Note    `json:"notes,omitempty"`
	Checks  []Check   `json:"checks,omitempty"`
}

// Machine is what the figures were measured on.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// Metric is one figure of every peer. A peer that was not measured is missing.
type Metric struct {
	ID      string            `json:"id"`
	Title   string            `json:"title"`
	Unit    string            `json:"unit"`
	Higher  bool              `json:"higher_is_better"`
	Detail  bool              `json:"detail,omitempty"` // not in the picture
	Figures map[string]Figure `json:"figures"`
}

// Figure is what one peer reached.
type Figure struct {
	Median float64   `json:"median"`
	Runs   []float64 `json:"runs"` // in the order measured
}

// Note tells what was not measured, and why.
type Note struct {
	Peer     string `json:"peer"`
	Scenario string `json:"scenario,omitempty"`
	Text     string `json:"text"`
	Failure  bool   `json:"failure"` // it should have worked
}

// Failed says whether anything failed that should have worked.
func (r *Report) Failed() bool {
	return slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Failure })
}

// Figure returns the median of a peer's metric.
func (r *Report) Figure(metric, peer string) (float64, bool) {
	for _, m := range r.Metrics {
		if m.ID == metric {
			f, ok := m.Figures[peer]
			return f.Median, ok
		}
	}
	return 0, false
}

// WriteJSON writes the report with all runs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// ratio is a peer's figure over the reference's, when both are there.
func (m *Metric) ratio(peer string) (float64, bool) {
	own, ok := m.Figures[peer]
	of, there := m.Figures[Reference]
	if !ok || !there || of.Median == 0 || peer == Reference {
		return 0, false
	}
	return own.Median / of.Median, true
}

// format shows a value with about three digits that count.
func format(v float64) string {
	switch size := max(v, -v); {
	case size >= 99.95:
		return group(strconv.FormatFloat(v, 'f', 0, 64))
	case size >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// group puts a comma between thousands.
func group(digits string) string {
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}
