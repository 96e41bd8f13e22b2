package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// Result is what a scenario found.
type Result struct {
	Scenario string   `json:"scenario"`
	Short    bool     `json:"short"`
	Seed     uint64   `json:"seed"`
	Seconds  float64  `json:"seconds"`
	Figures  []Figure `json:"figures"`
	Failures []string `json:"failures"` // criteria that were missed, and why

	mu       sync.Mutex   // guards Figures and Failures
	progress atomic.Int64 // times that a drain's progress was seen
}

// Figure is one that was measured.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Want  string  `json:"want,omitempty"` // the criterion; empty: none
}

const mostFailures = 20 // what follows says nothing new

// fail notes a failure.
func (r *Result) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Failures) < mostFailures {
		r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
	}
}

// stop notes a failure after which the scenario cannot go on.
func (r *Result) stop(format string, args ...any) error {
	r.fail(format, args...)
	return errStopped
}

// keep notes an error, if there is one.
func (r *Result) keep(err error) {
	if err != nil {
		r.fail("%v", err)
	}
}

func (r *Result) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.Failures) > 0
}

// figure notes a figure without a criterion.
func (r *Result) figure(name string, value float64, unit string) {
	r.add(Figure{name, value, unit, ""})
}

// most notes a figure that may be so high at most.
func (r *Result) most(name string, value, bound float64, unit string) {
	r.add(Figure{name, value, unit, fmt.Sprintf("at most %g", bound)})
	if value > bound {
		r.fail("%s: %.4g %s, at most %g are allowed", name, value, unit, bound)
	}
}

// least notes a figure that must be so high at least.
func (r *Result) least(name string, value, bound float64, unit string) {
	r.add(Figure{name, value, unit, fmt.Sprintf("at least %g", bound)})
	if value < bound {
		r.fail("%s: %.4g %s, at least %g are wanted", name, value, unit, bound)
	}
}

func (r *Result) add(f Figure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Figures = append(r.Figures, f)
}

// Err is nil when every criterion was met.
func (r *Result) Err() error {
	if !r.failed() {
		return nil
	}
	return fmt.Errorf("%s: %d failures; the first: %s", r.Scenario, len(r.Failures), r.Failures[0])
}

// WriteText writes the result for people.
func (r *Result) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s\t%.1f s\tseed %d\n", r.Scenario, r.Seconds, r.Seed)
	for _, f := range r.Figures {
		fmt.Fprintf(t, "  %s\t%s %s\t%s\n", f.Name, number(f.Value), f.Unit, f.Want)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Failures {
		if _, err := fmt.Fprintln(w, "  FAILED: "+f); err != nil {
			return err
		}
	}
	return nil
}

// number is a value as people write it.
func number(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d", int64(v))
	}
	return fmt.Sprintf("%.2f", v)
}

// writeJSON writes results for programs.
func writeJSON(w io.Writer, results []*Result) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(results)
}

// quantile is the value below which the part q of list is; list is sorted by it.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(q*float64(len(list))), len(list)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
