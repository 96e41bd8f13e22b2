package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/bench/load"
	"fairlead/bench/peers"
	"fairlead/bench/report"
)

// TestMain makes the test binary what the bench binary is: the relay and the load's processes are itself again.
func TestMain(m *testing.M) {
	root := &cobra.Command{Use: "bench", SilenceUsage: true}
	root.AddCommand(peers.RelayCommand(), load.ClientCommand(), load.ServerCommand())
	if len(os.Args) > 1 {
		if cmd, _, err := root.Find(os.Args[1:]); err == nil && cmd != root {
			if root.Execute() != nil {
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

func tiny() load.Sizes {
	return load.Sizes{
		Bytes: 4 << 20, Streams: []int{1, 8}, Opens: 60, Openers: 8,
		Idle: []int{30}, IdleRest: 10 * time.Millisecond,
		Steady: 200 * time.Millisecond, Warmup: 100 * time.Millisecond, RoundTrip: 20 * time.Millisecond,
		Limit: 4 << 20, Echo: 100 * time.Millisecond,
	}
}

func config(t *testing.T, sizes load.Sizes, list ...peers.Peer) Config {
	exe, err := os.Executable()
	require.NoError(t, err)
	return Config{
		Peers: list, Scenarios: load.Catalogue(sizes, nil), Runs: 1, Timeout: time.Minute, Exe: exe,
		Dir: t.TempDir(), LogDir: filepath.Join(t.TempDir(), "logs"), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// Every scenario over both bare relays: each metric has a figure, and none is impossible.
//
// Verifies: R10.8
func TestEveryScenarioOverTheBareRelays(t *testing.T) {
	c := config(t, tiny(), peers.Relay{}, peers.Relay{TLS: true})
	r, err := Run(t.Context(), c)
	require.NoError(t, err)
	require.Empty(t, r.Notes)
	require.Equal(t, []string{"relay-tcp", "relay-tls"}, r.Peers)
	for _, m := range r.Metrics {
		for _, peer := range r.Peers {
			f, ok := m.Figures[peer]
			require.True(t, ok, "%s of %s", m.ID, peer)
			require.Len(t, f.Runs, 1)
			if m.Higher {
				require.Positive(t, f.Median, "%s of %s", m.ID, peer)
			}
		}
	}
	for _, peer := range r.Peers {
		over, ok := r.Figure("interactive.bulk.mb_s", peer)
		require.True(t, ok)
		require.Less(t, over, 8.0, "the slow link was slow")
	}
	left, err := os.ReadDir(c.Dir)
	require.NoError(t, err)
	for _, entry := range left {
		require.False(t, entry.IsDir(), "%s was left behind", entry.Name())
	}
}

func TestInterleavedRunsGiveMedians(t *testing.T) {
	c := config(t, tiny(), peers.Relay{})
	c.Runs = 3
	c.Scenarios = []load.Scenario{counting()}
	r, err := Run(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, report.Figure{Median: 2, Runs: []float64{1, 2, 3}}, r.Metrics[0].Figures["relay-tcp"])
}

// counting is a scenario that measures how often it ran.
func counting() load.Scenario {
	n := 0.0
	return load.Scenario{
		Name: "counting", Metrics: []load.Metric{{ID: "counting.n", Title: "Runs", Unit: "1"}},
		Run: func(context.Context, *load.Bench) ([]load.Sample, error) {
			n++
			return []load.Sample{{Metric: "counting.n", Value: n}}, nil
		},
	}
}

// broken is a peer that does not start.
type broken struct{ peers.Relay }

func (broken) Name() string { return "broken" }

func (broken) Start(_ context.Context, env peers.Env) (*peers.Instance, error) {
	_ = os.WriteFile(filepath.Join(env.Dir, "gateway.log"), []byte("no such key"), 0o600)
	_ = os.WriteFile(filepath.Join(env.Dir, "token"), []byte("secret"), 0o600)
	return nil, errors.New("out of order")
}

func TestAPeerThatFailsIsNotedAndTheOthersGoOn(t *testing.T) {
	c := config(t, tiny(), broken{}, peers.Relay{})
	c.Runs = 2
	c.Scenarios = []load.Scenario{counting(), load.IdleTunnels(tiny(), nil)}
	r, err := Run(t.Context(), c)
	require.NoError(t, err)
	require.True(t, r.Failed())
	require.Len(t, r.Metrics[0].Figures["relay-tcp"].Runs, 2)
	require.NotContains(t, r.Metrics[0].Figures, "broken")
	require.Len(t, r.Notes, 3, "one for each scenario that failed or did not fit, not one for each run")
	require.Equal(t, report.Note{Peer: "relay-tcp", Scenario: "idle-tunnels", Text: "the peer has no tunnels to open"}, r.Notes[2])
	kept, err := filepath.Glob(filepath.Join(c.LogDir, "broken-counting-*", "*"))
	require.NoError(t, err)
	require.Len(t, kept, 1, "the log is kept, and nothing else")
	require.Equal(t, "gateway.log", filepath.Base(kept[0]))
}

// few is a relay that can hold only a few connections.
type few struct{ peers.Relay }

func (f few) Start(ctx context.Context, env peers.Env) (*peers.Instance, error) {
	in, err := f.Relay.Start(ctx, env)
	if err == nil {
		in.MaxStreams = 10
	}
	return in, err
}

func TestCountsThatAPeerCannotHoldAreNotedOnce(t *testing.T) {
	sizes := tiny()
	sizes.Idle = []int{5, 50}
	c := config(t, sizes, few{})
	c.Runs = 2
	c.Scenarios = c.Scenarios[2:3]
	require.Equal(t, "idle", c.Scenarios[0].Name)
	r, err := Run(t.Context(), c)
	require.NoError(t, err)
	require.False(t, r.Failed())
	require.Len(t, r.Notes, 1)
	require.Contains(t, r.Notes[0].Text, "at most 10")
	_, ok := r.Figure("idle.5.gateway", "relay-tcp")
	require.True(t, ok)
	_, ok = r.Figure("idle.50.gateway", "relay-tcp")
	require.False(t, ok)
}

// A measurement that fails half-way keeps what it has.
func TestSamplesBesideAnErrorAreKept(t *testing.T) {
	c := config(t, tiny(), peers.Relay{})
	good := counting()
	c.Scenarios = []load.Scenario{good}
	c.Scenarios[0].Run = func(ctx context.Context, b *load.Bench) ([]load.Sample, error) {
		samples, _ := good.Run(ctx, b)
		return samples, errors.New("then it broke")
	}
	r, err := Run(t.Context(), c)
	require.NoError(t, err)
	require.True(t, r.Failed())
	require.Len(t, r.Metrics[0].Figures["relay-tcp"].Runs, 1)
}

func TestCancelEndsTheComparison(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := config(t, tiny(), peers.Relay{})
	c.Scenarios = []load.Scenario{{Name: "endless", Run: func(ctx context.Context, _ *load.Bench) ([]load.Sample, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}}
	_, err := Run(ctx, c)
	require.ErrorIs(t, err, context.Canceled)
}

func TestCommand(t *testing.T) {
	out := t.TempDir()
	cmd := Command()
	var shown bytes.Buffer
	cmd.SetOut(&shown)
	cmd.SetErr(t.Output())
	cmd.SetArgs([]string{"--quick", "--peers", "relay-tls,relay-tcp", "--scenarios", "opens", "--out", out})
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	require.Contains(t, shown.String(), "Opens per second")
	text, err := os.ReadFile(filepath.Join(out, "compare.json"))
	require.NoError(t, err)
	var r report.Report
	require.NoError(t, json.Unmarshal(text, &r))
	require.Equal(t, []string{"relay-tcp", "relay-tls"}, r.Peers)
	require.NotEmpty(t, r.Machine.CPU)
	require.NotEmpty(t, r.Checks)
	picture, err := os.ReadFile(filepath.Join(out, "compare.svg"))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(picture), "<svg"))
}

func TestCommandRefusesBadFlags(t *testing.T) {
	for flags, want := range map[string]string{
		"--peers nobody":      `there is no peer "nobody"; there are fairlead, fairlead-64MiB, relay-tcp`,
		"--scenarios nothing": `there is no scenario "nothing"; there are throughput`,
		"--runs 0":            "--runs is 0",
		"stray":               "unknown command",
	} {
		cmd := Command()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(flags))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), want)
	}
}

func noTunnels(context.Context, peers.Access, int) (io.Closer, error) {
	return nil, errors.ErrUnsupported
}

// A target for a metric that no scenario has would never be checked.
func TestTargetsNameMetricsThatExist(t *testing.T) {
	var r report.Report
	for _, s := range load.Catalogue(load.Full(), noTunnels) {
		for _, m := range s.Metrics {
			r.Metrics = append(r.Metrics, report.Metric{ID: m.ID})
		}
	}
	r.Check(targets())
	require.Len(t, r.Checks, len(targets()))
}
