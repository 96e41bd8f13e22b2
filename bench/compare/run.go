package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fairlead/bench/load"
	"fairlead/bench/peers"
	"fairlead/bench/report"
)

// Config is one comparison.
type Config struct {
	Peers     []peers.Peer // that are available
	Scenarios []load.Scenario
	Runs      int
	Quick     bool          // said in the report
	Timeout   time.Duration // of one scenario on one peer, start included
	Exe       string        // the bench binary
	Dir       string        // for work files; the caller removes it
	LogDir    string        // keeps the logs of what failed
	Log       *slog.Logger
}

// Run measures every scenario on every peer, interleaved: the machine's noise then falls on all alike. A peer that
// fails in a scenario is noted and not tried in it again. The error is about the comparison as a whole.
func Run(ctx context.Context, c Config) (*report.Report, error) {
	runner := load.Runner{Exe: c.Exe, Dir: c.Dir}
	server, target, err := runner.StartServer(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	r := &comparison{Config: c, runner: runner, target: target, values: make(map[key][]float64), given: make(map[key]bool)}
	for run := range c.Runs {
		for _, scenario := range c.Scenarios {
			for _, peer := range c.Peers {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				if suits(peer, scenario.Name) {
					r.one(ctx, run, peer, scenario)
				}
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.report(), nil
}

// suits says whether a scenario is for the peer.
func suits(peer peers.Peer, scenario string) bool {
	picky, ok := peer.(peers.Picky)
	return !ok || picky.Scenarios() == nil || slices.Contains(picky.Scenarios(), scenario)
}

// readyTimeout is how long a started peer may take until an echo comes back.
const readyTimeout = 20 * time.Second

// comparison collects what Run measures.
type comparison struct {
	Config
	runner load.Runner
	target string
	values map[key][]float64
	given  map[key]bool // what is not tried again
	notes  []report.Note
}

// key is a peer with a metric, or with a scenario.
type key struct{ peer, of string }

// one measures one scenario on one peer once.
func (r *comparison) one(ctx context.Context, run int, peer peers.Peer, scenario load.Scenario) {
	at := key{peer.Name(), scenario.Name}
	if r.given[at] {
		return
	}
	log := r.Log.With("peer", at.peer, "scenario", at.of, "run", run+1)
	start := time.Now()
	samples, err := r.measure(ctx, peer, scenario)
	if ctx.Err() != nil {
		return
	}
	for _, s := range samples {
		k := key{at.peer, s.Metric}
		r.values[k] = append(r.values[k], s.Value)
	}
	var no unfit
	switch {
	case err == nil:
		log.Info("measured", "took", time.Since(start).Round(100*time.Millisecond))
		return
	case errors.As(err, &no):
		log.Info("skipped", "reason", no)
		r.note(at, string(no), false)
	default:
		log.Error("failed", "error", err)
		r.note(at, err.Error(), true)
	}
	r.given[at] = true
}

// note keeps a note, each only once.
func (r *comparison) note(at key, text string, failure bool) {
	n := report.Note{Peer: at.peer, Scenario: at.of, Text: text, Failure: failure}
	if !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
	}
}

// unfit is the error of an instance that a scenario cannot measure; it says why.
type unfit string

func (u unfit) Error() string { return string(u) }

// measure starts a fresh instance for the scenario and stops it.
func (r *comparison) measure(ctx context.Context, peer peers.Peer, scenario load.Scenario) (samples []load.Sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	dir, err := os.MkdirTemp(r.Dir, peer.Name()+"-"+scenario.Name+"-")
	if err != nil {
		return nil, err
	}
	defer func() {
		var no unfit
		if err != nil && !errors.As(err, &no) {
			err = errors.Join(err, keepLogs(dir, filepath.Join(r.LogDir, filepath.Base(dir))))
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	var proxies []*load.Proxy
	defer func() {
		for _, p := range proxies {
			p.Close()
		}
	}()
	in, err := peer.Start(ctx, peers.Env{
		Exe: r.Exe, Dir: dir, Target: r.target,
		Via: func(address string) (string, error) {
			if scenario.Path == nil {
				return address, nil
			}
			p, err := scenario.Path(address)
			if err != nil {
				return "", err
			}
			proxies = append(proxies, p)
			return p.Addr(), nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	defer in.Stop()
	return r.drive(ctx, in, scenario, func(text string) { r.note(key{peer.Name(), scenario.Name}, text, false) })
}

// drive runs the scenario on a started instance.
func (r *comparison) drive(ctx context.Context, in *peers.Instance, scenario load.Scenario, note func(string)) ([]load.Sample, error) {
	if scenario.Fits != nil {
		if ok, why := scenario.Fits(in); !ok {
			return nil, unfit(why)
		}
	}
	for _, addr := range slices.Compact([]string{in.Addrs.High, in.Addrs.Normal, in.Addrs.Low}) {
		if err := r.ready(ctx, addr); err != nil {
			return nil, errors.Join(err, in.Err())
		}
	}
	samples, err := scenario.Run(ctx, &load.Bench{Runner: r.runner, In: in, Note: note})
	if ended := in.Err(); ended != nil {
		err = errors.Join(err, ended)
	}
	return samples, err
}

// ready waits until an echo comes back through addr.
func (r *comparison) ready(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return load.AwaitEcho(ctx, addr)
}

// report puts the medians together.
func (r *comparison) report() *report.Report {
	out := &report.Report{Made: time.Now().UTC().Truncate(time.Second), Machine: machine(), Runs: r.Runs, Quick: r.Quick, Notes: r.notes}
	for _, p := range r.Peers {
		out.Peers = append(out.Peers, p.Name())
	}
	for _, s := range r.Scenarios {
		for _, m := range s.Metrics {
			shown := report.Metric{ID: m.ID, Title: m.Title, Unit: m.Unit, Higher: m.Higher, Detail: m.Detail, Figures: make(map[string]report.Figure)}
			for _, p := range out.Peers {
				if values := r.values[key{p, m.ID}]; len(values) > 0 {
					shown.Figures[p] = report.Figure{Median: load.Median(values), Runs: values}
				}
			}
			out.Metrics = append(out.Metrics, shown)
		}
	}
	return out
}

// keepLogs copies the logs of an instance that failed; its keys and tokens are not kept.
func keepLogs(from, to string) error {
	logs, err := filepath.Glob(filepath.Join(from, "*.log"))
	if err != nil || len(logs) == 0 {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, log := range logs {
		if err := copyFile(log, filepath.Join(to, filepath.Base(log))); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies at most the first 16 MiB: a log that is longer says the same over and over.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, 16<<20))
	return errors.Join(err, out.Close())
}
