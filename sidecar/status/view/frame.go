package view

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"fairlead/shared/errs"
	"fairlead/sidecar/status"
)

// keptSamples bounds what a sparkline can show: more than any terminal has columns.
const keptSamples = 600

// Model is what the live view knows.
type Model struct {
	Address string         // where the sidecar is asked
	Status  *status.Status // the last answer; nil: there was none yet
	Sent    []float64      // bytes a second, one for each look, the oldest first
	Recvd   []float64
	Silent  time.Time // when the first of the questions without an answer was asked; zero: the last one was answered
	Error   string    // why there is no answer
}

// Answered takes an answer.
func (m *Model) Answered(st *status.Status) {
	m.Status, m.Silent, m.Error = st, time.Time{}, ""
	m.sample(st.Rates.Sent, st.Rates.Received)
}

// Failed takes that there was no answer.
func (m *Model) Failed(err error, now time.Time) {
	if m.Silent.IsZero() {
		m.Silent = now
	}
	m.Error = cause(err)
	m.sample(0, 0)
}

// cause is why there is no answer, in short: that there is none, and where, is said besides.
func cause(err error) string {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number.Error()
	}
	return errs.From(err).Text()
}

// Remember begins the sparklines with what the sidecar itself remembers.
func (m *Model) Remember(samples []status.Sample) {
	for _, s := range samples[max(0, len(samples)-keptSamples):] {
		m.sample(s.Sent, s.Received)
	}
}

func (m *Model) sample(sent, received float64) {
	m.Sent, m.Recvd = append(m.Sent, sent), append(m.Recvd, received)
	if over := len(m.Sent) - keptSamples; over > 0 {
		m.Sent, m.Recvd = m.Sent[over:], m.Recvd[over:]
	}
}

// Frame fills a terminal of columns by rows: at most rows lines, none wider than columns.
func (m *Model) Frame(columns, rows int, now time.Time) []Line {
	foot := m.foot(now)
	if rows < 2 {
		return fitted([]Line{foot}, columns, rows)
	}
	lines := m.top(columns, now)
	if m.Status != nil {
		lines = append(lines, lists(m.Status, columns, rows-1-len(lines), now)...)
	}
	lines = fitted(lines, columns, rows-1)
	for len(lines) < rows-1 {
		lines = append(lines, nil)
	}
	return append(lines, foot.within(columns))
}

func fitted(lines []Line, columns, rows int) []Line {
	lines = lines[:min(len(lines), max(0, rows))]
	for i, l := range lines {
		lines[i] = l.within(columns)
	}
	return lines
}

func (m *Model) foot(now time.Time) Line {
	return Line{span(dim, "q quits  "+m.Address+"  "+now.Format("15:04:05"))}
}

// silence says since when there is no answer.
func (m *Model) silence(now time.Time) Line {
	return Line{span(bad+";1", fmt.Sprintf("○ no answer since %s (%s)", m.Silent.Format("15:04:05"), Age(m.Silent, now))), span(plain, "  "+m.Error)}
}

// top is what is always shown: state, rates, queue, spool.
func (m *Model) top(columns int, now time.Time) []Line {
	st := m.Status
	if st == nil {
		if m.Silent.IsZero() {
			return []Line{{span(bold, "fairlead")}, text("asking " + m.Address + " …")}
		}
		return []Line{{span(bold, "fairlead")}, m.silence(now)}
	}
	lines := []Line{title(st, now)}
	if m.Silent.IsZero() {
		lines = addIf(append(lines, health(st, now)), whyNot(st))
	} else { // what follows is what was known last
		lines = append(lines, m.silence(now))
	}
	lines = addIf(lines, shutdown(st, now))
	bars := min(max(columns/4, 6), 40)
	lines = append(lines, rate("sent", m.Sent, columns), rate("received", m.Recvd, columns))
	lines = append(lines, queue(st, bars)...)
	lines = append(lines, spool(st, bars, now)...)
	return append(lines, heartbeat(st))
}

// rate is a sparkline with the value of now and the highest that it shows.
func rate(name string, values []float64, columns int) Line {
	n := min(max(columns-11-32, 8), keptSamples)
	shown := values[max(0, len(values)-n):]
	peak, last := 0.0, 0.0
	for _, v := range shown {
		peak, last = max(peak, v), v
	}
	return Line{span(plain, label(name)), {Sparkline(shown, n, peak), blue}, span(plain, "  "+pad(Bytes(last)+"/s", 11, true)),
		span(dim, "  peak "+Bytes(peak)+"/s")}
}

// lists shares rows among the tables: each gets its first row, in the order of importance, then what it needs.
func lists(st *status.Status, columns, rows int, now time.Time) []Line {
	shown := []section{tunnels(st, now), endpoints(st, now), listeners(st), events(st, rows, now)}
	gap := 0
	if rows >= 14 {
		gap = 1
	}
	var lines []Line
	for i, n := range share(shown, []int{0, 3, 1, 2}, rows, 1+gap) {
		if n == 0 {
			continue
		}
		if gap > 0 {
			lines = append(lines, nil)
		}
		lines = append(lines, shown[i].lines(columns, n)...)
	}
	return lines
}

// share gives each section its number of rows. order has the most important first; overhead is what a section that is
// shown takes besides its rows.
func share(of []section, order []int, rows, overhead int) []int {
	got := make([]int, len(of))
	for _, i := range order {
		if len(of[i].rows) > 0 && rows > overhead {
			got[i] = 1
			rows -= overhead + 1
		}
	}
	for given := true; given && rows > 0; {
		given = false
		for _, i := range order {
			if got[i] > 0 && got[i] < len(of[i].rows) && rows > 0 {
				got[i]++
				rows--
				given = true
			}
		}
	}
	return got
}
