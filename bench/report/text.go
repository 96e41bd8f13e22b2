package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteText writes tables for a terminal: the figures, with ratios to the reference in parentheses, what was not
// measured, and the targets.
func (r *Report) WriteText(w io.Writer) error {
	out := bufio.NewWriter(w)
	r.textHead(out)
	if err := r.textFigures(out); err != nil {
		return err
	}
	r.textNotes(out)
	if err := r.textChecks(out); err != nil {
		return err
	}
	return out.Flush()
}

func (r *Report) textHead(w io.Writer) {
	fmt.Fprintf(w, "%s, %d cores, Linux %s, %s\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go)
	fmt.Fprintf(w, "%s; in parentheses: times %s", runs(r.Runs), Reference)
	if r.Quick {
		fmt.Fprint(w, "; quick sizes, rough figures")
	}
	fmt.Fprint(w, "\n\n")
}

func (r *Report) textFigures(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "metric\tunit\tbetter\t%s\n", strings.Join(r.Peers, "\t"))
	section := ""
	for _, m := range r.Metrics {
		if name, _, _ := strings.Cut(m.ID, "."); name != section {
			section = name
			// With empty cells, or the columns would be aligned anew from here on.
			fmt.Fprintf(t, "%s%s\n", strings.ToUpper(section), strings.Repeat("\t", 2+len(r.Peers)))
		}
		fmt.Fprintf(t, "%s\t%s\t%s", m.Title, m.Unit, m.better())
		for _, peer := range r.Peers {
			fmt.Fprintf(t, "\t%s", m.cell(peer))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func (m *Metric) better() string {
	if m.Higher {
		return "more"
	}
	return "less"
}

func (m *Metric) cell(peer string) string {
	f, ok := m.Figures[peer]
	if !ok {
		return "-"
	}
	if ratio, ok := m.ratio(peer); ok {
		return fmt.Sprintf("%s (%.2f)", format(f.Median), ratio)
	}
	return format(f.Median)
}

func (r *Report) textNotes(w io.Writer) {
	if len(r.Notes) == 0 {
		return
	}
	fmt.Fprintln(w)
	for _, n := range r.Notes {
		kind := "skipped"
		if n.Failure {
			kind = "FAILED"
		}
		fmt.Fprintf(w, "%s: %s: %s\n", kind, strings.TrimSpace(n.Peer+" "+n.Scenario), n.Text)
	}
}

func (r *Report) textChecks(w io.Writer) error {
	if len(r.Checks) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "target\tcriterion\tlimit\tmeasured\tresult\n")
	for _, c := range r.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.Criterion, c.limit(), c.measured(), c.result())
	}
	return t.Flush()
}

func (c *Check) limit() string {
	sign, against := "≤", ""
	if c.AtLeast {
		sign = "≥"
	}
	if c.Against != "" {
		against = " (" + c.Against + ")"
	}
	if c.State == Unmeasured && c.Limit == 0 {
		return "-"
	}
	return sign + " " + format(c.Limit) + " " + c.Unit + against
}

func (c *Check) measured() string {
	if c.State == Unmeasured {
		return "-"
	}
	return format(c.Measured) + " " + c.Unit
}

func (c *Check) result() string {
	if c.Goal {
		return string(c.State) + " (goal)"
	}
	return string(c.State)
}

func runs(n int) string {
	if n == 1 {
		return "one run"
	}
	return fmt.Sprintf("medians of %d runs", n)
}
