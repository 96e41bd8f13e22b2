package view_test

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/sidecar/status"
	"fairlead/sidecar/status/view"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

func shown(lines []view.Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.String() + "\n")
	}
	return b.String()
}

// model has looked at st after two minutes of traffic.
func model(st *status.Status) *view.Model {
	m := &view.Model{Address: "127.0.0.1:9901"}
	var past []status.Sample
	for i := range 120 {
		past = append(past, status.Sample{Sent: 1e6 * (1 + math.Sin(float64(i)/7)), Received: float64(i%30) * 1e4})
	}
	m.Remember(past)
	m.Answered(st)
	return m
}

func states() map[string]*status.Status {
	return map[string]*status.Status{"well": well(), "reconnecting": reconnecting(), "failed": failed(), "draining": draining()}
}

// Verifies: R1.5, R2.8, R3.5, R8.10
func TestFramesAtThreeSizes(t *testing.T) {
	for name, st := range states() {
		for _, size := range [][2]int{{80, 24}, {140, 45}, {44, 14}} {
			lines := model(st).Frame(size[0], size[1], noon)
			assert.Len(t, lines, size[1])
			golden(t, name+"-"+strconv.Itoa(size[0]), shown(lines))
		}
	}
}

func TestSummaries(t *testing.T) {
	for name, st := range states() {
		golden(t, name+"-summary", shown(view.Summary(st, noon)))
	}
}

func TestATunnelThatGoesByAnotherReplica(t *testing.T) {
	st := well()
	st.Tunnels[0].Replica, st.Tunnels[0].Via = "gw-1", "gw-2"
	assert.Contains(t, shown(view.Summary(st, noon)), "  gw-1 via gw-2 ")
	assert.Contains(t, shown(model(st).Frame(140, 45, noon)), "  gw-1 via gw-2 ")
}

func TestASidecarThatIsAway(t *testing.T) {
	m := &view.Model{Address: "127.0.0.1:9901"}
	m.Failed(fmt.Errorf("dial: %w", syscall.ECONNREFUSED), ago(65*time.Second))
	m.Failed(fmt.Errorf("dial: %w", syscall.ECONNREFUSED), ago(64*time.Second))
	assert.Contains(t, shown(m.Frame(80, 24, noon)), "○ no answer since 11:58:55 (1m 5s)  connection refused\n")
	m.Answered(well())
	assert.NotContains(t, shown(m.Frame(80, 24, noon)), "no answer")
	m.Failed(errs.New(errs.NoSidecar, "reset"), ago(2*time.Second))
	got := shown(m.Frame(80, 24, noon))
	assert.Contains(t, got, "○ no answer since 11:59:58 (2s)  reset\n")
	assert.Contains(t, got, "gateway-a.eu.example.com", "what was known last stays")
}

// hostile has a text in every place that a terminal must not get.
func hostile(evil string) *status.Status {
	st := reconnecting()
	st.Instance, st.Version, st.Profile, st.State, st.NotReady, st.Quality = evil, evil, evil, evil, evil, evil
	for i := range st.Tunnels {
		tn := &st.Tunnels[i]
		tn.Endpoint, tn.Replica, tn.Via, tn.State, tn.Quality, tn.Error = evil, evil, evil, evil, evil, evil
	}
	for i := range st.Listeners {
		l := &st.Listeners[i]
		l.Name, l.Listen, l.Route, l.Priority, l.Delivery = evil, evil, evil, evil, evil
	}
	for i := range st.Events {
		e := &st.Events[i]
		e.State, e.Endpoint, e.Code, e.Reason = evil, evil, evil, evil
	}
	for i := range st.Endpoints {
		e := &st.Endpoints[i]
		e.URL, e.State, e.Error = evil, evil, evil
	}
	st.Heartbeat = status.Heartbeat{Interval: evil, Reason: evil}
	st.Spool.Error, st.Spool.Bytes, st.Spool.Size = evil, math.MinInt64, -1
	st.Shutdown = &status.Shutdown{Phase: evil, Reason: evil, Deadline: time.Unix(1<<50, 0)}
	st.Queue = status.Queue{Length: -5, Size: math.MinInt}
	st.Rates, st.RTT, st.Loss = status.Rates{Sent: math.Inf(1), Received: math.NaN()}, math.NaN(), math.Inf(1)
	return st
}

func TestHostileTextNeverReachesTheTerminal(t *testing.T) {
	for _, evil := range []string{"\x1b]0;owned\x07", "a\r\nb\x9b31m", "\u202eabc\u200b", "\xff\xfe", "e\u0301\u0301\u0301", strings.Repeat("宽", 5000), "\u009b2J"} {
		m := model(hostile(evil))
		m.Failed(errors.New(evil), noon)
		for _, size := range [][2]int{{80, 24}, {200, 60}, {10, 5}, {1, 1}, {3, 2}, {0, 0}} {
			lines := m.Frame(size[0], size[1], noon)
			assert.LessOrEqual(t, len(lines), size[1])
			for _, l := range lines {
				assert.LessOrEqual(t, columns(l.String()), size[0])
				harmless(t, l)
			}
		}
		for _, l := range view.Summary(hostile(evil), noon) {
			harmless(t, l)
		}
		assert.NotContains(t, view.Progress(hostile(evil), noon), "\x1b")
	}
}

func harmless(t *testing.T, l view.Line) {
	t.Helper()
	for _, s := range l {
		for _, r := range s.Text {
			require.True(t, unicode.IsPrint(r) && !unicode.IsMark(r), "%q", s.Text)
		}
	}
}

// columns counts the wide runes of the tests twice.
func columns(s string) int { return len([]rune(s)) + strings.Count(s, "宽") }

func TestNumbers(t *testing.T) {
	for n, want := range map[float64]string{0: "0 B", -1: "0 B", 999: "999 B", 1023: "1023 B", 1023.6: "1.0 KiB", 1536: "1.5 KiB", 1023.9 * 1024: "1.0 MiB", 200 << 20: "200 MiB", 1 << 62: "4.0 EiB",
		math.Inf(1): "0 B"} {
		assert.Equal(t, want, view.Bytes(n), n)
	}
	assert.Equal(t, "0 B", view.Bytes(math.NaN()))
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 59 * time.Second: "59s", time.Minute: "1m", 61 * time.Second: "1m 1s", 2 * time.Hour: "2h", 49*time.Hour + time.Minute: "2d 1h"} {
		assert.Equal(t, want, view.Duration(d))
	}
	assert.Equal(t, "  ▁▁▂▅█", view.Sparkline([]float64{0, math.NaN(), 1, 50, 200}, 7, 100))
	assert.Equal(t, "▁▁", view.Sparkline([]float64{9, 0, 0}, 2, 0))
	full, empty := view.Bar(1, 1000, 4)
	assert.Equal(t, "█░░░", full+empty, "a little shows")
	full, empty = view.Bar(999, 1000, 4)
	assert.Equal(t, "███░", full+empty, "nearly full is not full")
	full, empty = view.Bar(math.Inf(1), 1000, 4)
	assert.Equal(t, "████", full+empty)
}

func TestColours(t *testing.T) {
	line := view.Summary(failed(), noon)[1]
	assert.Contains(t, line.ANSI(), "\x1b[31;1m● failed\x1b[0m")
	assert.NotContains(t, line.String(), "\x1b")
}

func TestTheGuideShowsWhatIsShown(t *testing.T) {
	guide, err := os.ReadFile("../../../docs/status.md")
	require.NoError(t, err)
	assert.Contains(t, string(guide), shown(view.Summary(reconnecting(), noon)))
	assert.Contains(t, string(guide), shown(model(well()).Frame(80, 24, noon)))
}
