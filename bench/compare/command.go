// Package compare measures fairlead side by side with bare relays and with other programs that do its work.
package compare

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fairlead/bench/load"
	"fairlead/bench/peers"
	"fairlead/bench/proc"
	"fairlead/bench/report"
)

// Option adds to Command what this package cannot bring along.
type Option func(*options)

// WithTunnels gives the scenario idle-tunnels its opener; without it there is no such scenario.
func WithTunnels(open load.TunnelOpener) Option { return func(o *options) { o.open = open } }

// options are the flags of the command.
type options struct {
	peers, scenarios []string
	quick, check     bool
	runs             int
	out, fairleadBin string
	timeout          time.Duration
	open             load.TunnelOpener
}

// Command is `bench compare`.
func Command(opts ...Option) *cobra.Command {
	o := &options{}
	for _, set := range opts {
		set(o)
	}
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Measure fairlead side by side with bare relays, OpenSSH and other tunnels",
		Long: "Runs each scenario on each peer that is found, interleaved, prints a table, and writes compare.json and\n" +
			"compare.svg. Everything stays on the loopback interface.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.peers, "peers", nil, "peers to measure (default: all that are found): "+strings.Join(names(peers.All(peers.Options{}), peers.Peer.Name), ", "))
	flags.StringSliceVar(&o.scenarios, "scenarios", nil, "scenarios to run (default: all): "+strings.Join(names(load.Catalogue(load.Full(), o.open), scenarioName), ", "))
	flags.BoolVar(&o.quick, "quick", false, "small sizes: a minute in all, rough figures")
	flags.IntVar(&o.runs, "runs", 1, "runs of everything; figures are medians")
	flags.StringVar(&o.out, "out", filepath.Join("bin", "bench"), "directory for compare.json, compare.svg and the logs of failures")
	flags.StringVar(&o.fairleadBin, "fairlead-bin", "", "directory with sidecar and gateway binaries (default: build them)")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Minute, "longest time for one scenario on one peer")
	flags.BoolVar(&o.check, "check", false, "fail when a target is missed")
	return cmd
}

func (o *options) run(cmd *cobra.Command) (err error) {
	if o.runs < 1 {
		return fmt.Errorf("--runs is %d, and must be 1 or more", o.runs)
	}
	dir, err := os.MkdirTemp("", "fairlead-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, notes, err := o.config(dir, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	if err != nil {
		return err
	}
	r, err := Run(cmd.Context(), c)
	if err != nil {
		return err
	}
	r.Notes = append(notes, r.Notes...)
	r.Check(targets())
	if err := write(r, o.out, cmd.OutOrStdout()); err != nil {
		return err
	}
	if r.Failed() {
		return errors.New("some measurements failed; see the notes of the report")
	}
	if o.check && r.Missed() {
		return errors.New("a target was missed")
	}
	return nil
}

// config turns the flags into a comparison; notes tell which peers are not there.
func (o *options) config(dir string, log *slog.Logger) (Config, []report.Note, error) {
	exe, err := os.Executable()
	if err != nil {
		return Config{}, nil, err
	}
	sizes := load.Full()
	if o.quick {
		sizes = load.Quick()
	}
	c := Config{Runs: o.runs, Quick: o.quick, Timeout: o.timeout, Exe: exe, Dir: dir, LogDir: filepath.Join(o.out, "logs"), Log: log}
	if c.Scenarios, err = choose(load.Catalogue(sizes, o.open), o.scenarios, "scenario", scenarioName); err != nil {
		return c, nil, err
	}
	all := peers.All(peers.Options{FairleadBin: o.fairleadBin, BuildDir: dir})
	if all, err = choose(all, o.peers, "peer", peers.Peer.Name); err != nil {
		return c, nil, err
	}
	var notes []report.Note
	for _, p := range all {
		if ok, why := p.Available(); !ok {
			notes = append(notes, report.Note{Peer: p.Name(), Text: why, Failure: len(o.peers) > 0}) // asked for by name
			continue
		}
		c.Peers = append(c.Peers, p)
	}
	if len(c.Peers) == 0 {
		return c, nil, errors.New("none of the peers can run here")
	}
	got, err := proc.RaiseFiles(sizes.Files())
	if err != nil {
		return c, nil, err
	}
	if got < sizes.Files() {
		log.Warn("large counts of connections may fail", "open_files", got, "wanted", sizes.Files())
	}
	return c, notes, nil
}

// choose picks the items that are named, in the order of all; all of them when nothing is named.
func choose[T any](all []T, named []string, kind string, name func(T) string) ([]T, error) {
	known := names(all, name)
	for _, n := range named {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no %s %q; there are %s", kind, n, strings.Join(known, ", "))
		}
	}
	if len(named) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(item T) bool { return !slices.Contains(named, name(item)) }), nil
}

func names[T any](all []T, name func(T) string) []string {
	list := make([]string, len(all))
	for i, item := range all {
		list[i] = name(item)
	}
	return list
}

func scenarioName(s load.Scenario) string { return s.Name }

// write shows the report and writes its files.
func write(r *report.Report, dir string, terminal io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string]func(io.Writer) error{"compare.json": r.WriteJSON, "compare.svg": r.WriteSVG}
	for name, render := range files {
		if err := writeFile(filepath.Join(dir, name), render); err != nil {
			return err
		}
	}
	if err := r.WriteText(terminal); err != nil {
		return err
	}
	_, err := fmt.Fprintf(terminal, "\nwritten: %s, %s\n", filepath.Join(dir, "compare.json"), filepath.Join(dir, "compare.svg"))
	return err
}

func writeFile(path string, render func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(render(f), f.Close())
}
