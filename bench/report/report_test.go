package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sample() *Report {
	r := &Report{
		Made:    time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
		Machine: Machine{CPU: "Example <CPU>", Cores: 2, Kernel: "6.1", Go: "go1.26"},
		Runs:    3, Quick: true,
		Peers: []string{"fairlead", "relay-tcp", "relay-tls", "openssh"},
		Metrics: []Metric{
			{"throughput.1.up.mb_s", "Throughput, 1 stream up", "MB/s", true, false, map[string]Figure{
				"fairlead": {400, []float64{390, 400, 410}}, "relay-tcp": {1234.5, []float64{1234.5}},
				"relay-tls": {500, []float64{500}}, "openssh": {262, []float64{262}}}},
			{"throughput.1.up.cpu", "CPU per GiB, both sides, 1 stream up", "s/GiB", false, false, map[string]Figure{
				"fairlead": {3.6, []float64{3.6}}, "relay-tls": {3.0, []float64{3}}, "openssh": {2.7, []float64{2.7}}}},
			{"opens.p50", "Open to first byte, p50", "ms", false, true, map[string]Figure{"fairlead": {0.4, []float64{0.4}}}},
			{"idle.1000.gateway", "Memory per idle stream of 1000, gateway", "KiB", false, false, map[string]Figure{}},
		},
		Notes: []Note{
			{Peer: "chisel", Text: "chisel is not on the PATH"},
			{Peer: "relay-tcp", Scenario: "opens", Text: "exit status 1", Failure: true},
		},
	}
	r.Check([]Target{
		{Name: "throughput", Criterion: "N9", Metric: "throughput.1.up.mb_s", Limit: 500},
		{Name: "throughput", Criterion: "N9", Metric: "throughput.1.up.mb_s", Limit: 0.5, Of: OfReference},
		{Name: "CPU", Criterion: "N5", Metric: "throughput.1.up.cpu", Limit: 1.5, Of: OfReference},
		{Name: "CPU, to peers", Criterion: "N5", Metric: "throughput.1.up.cpu", Limit: 1, Of: OfBestPeer, Goal: true},
		{Name: "memory", Criterion: "N4", Metric: "idle.1000.gateway", Limit: 16},
		{Name: "opens", Criterion: "N1", Metric: "opens.p50", Limit: 2, Of: OfReference},
		{Name: "not part of this comparison", Criterion: "N3", Metric: "tunnels", Limit: 1},
	})
	return r
}

func TestGolden(t *testing.T) {
	r := sample()
	for name, render := range map[string]func(io.Writer) error{
		"report.txt": r.WriteText, "report.json": r.WriteJSON, "report.svg": r.WriteSVG,
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			require.NoError(t, render(&got))
			path := filepath.Join("testdata", name)
			if flag.Lookup("update").Value.String() == "true" {
				require.NoError(t, os.WriteFile(path, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String(), "run the test with -update and look at the difference")
		})
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	os.Exit(m.Run())
}

func TestChecks(t *testing.T) {
	r := sample()
	states := make([]State, len(r.Checks))
	for i, c := range r.Checks {
		states[i] = c.State
	}
	require.Equal(t, []State{Missed, Reached, Reached, Missed, Unmeasured, Unmeasured}, states)
	require.True(t, r.Missed())
	require.Equal(t, "openssh", r.Checks[3].Against)
	require.InDelta(t, 4.5, r.Checks[2].Limit, 1e-9)
	r.Checks = r.Checks[3:]
	require.False(t, r.Missed(), "a goal is not demanded")
}

func TestBestPeerWhenMoreIsBetter(t *testing.T) {
	m := Metric{Higher: true, Figures: map[string]Figure{
		"fairlead": {Median: 9}, "relay-tcp": {Median: 8}, "relay-tls": {Median: 7}, "a": {Median: 1}, "b": {Median: 2}, "c": {Median: 2}}}
	peer, figure, ok := m.base(Target{Of: OfBestPeer})
	require.True(t, ok)
	require.Equal(t, "b", peer)
	require.InDelta(t, 2, figure, 0)
}

func TestFailedAndFigure(t *testing.T) {
	r := sample()
	require.True(t, r.Failed())
	r.Notes = r.Notes[:1]
	require.False(t, r.Failed())
	v, ok := r.Figure("throughput.1.up.cpu", "fairlead")
	require.True(t, ok)
	require.InDelta(t, 3.6, v, 0)
	_, ok = r.Figure("throughput.1.up.cpu", "relay-tcp")
	require.False(t, ok)
	_, ok = r.Figure("nothing", "fairlead")
	require.False(t, ok)
}

func TestJSONReadsBack(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, sample().WriteJSON(&b))
	var got Report
	require.NoError(t, json.Unmarshal(b.Bytes(), &got))
	require.Equal(t, sample(), &got)
}

func TestSVGIsWellFormed(t *testing.T) {
	for _, r := range []*Report{sample(), {}} {
		var b bytes.Buffer
		require.NoError(t, r.WriteSVG(&b))
		for d := xml.NewDecoder(&b); ; {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.00", 0.567: "0.57", 9.994: "9.99", 9.996: "10.0", 42.25: "42.2", 99.96: "100", 999.6: "1,000", 1234567: "1,234,567", -1234: "-1,234",
	} {
		require.Equal(t, want, format(v))
	}
}
