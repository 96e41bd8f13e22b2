package main

import (
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/config"
	"fairlead/sidecar/doctor"
)

// doctorFlags are the flags of the command doctor.
type doctorFlags struct {
	asJSON     bool
	routes     []string
	timeout    time.Duration
	throughput string
	ssh        doctor.SSH
}

// doctorCommand makes the command doctor. build makes what tunnels are made with.
func doctorCommand(flags *sharedconfig.Flags, build func(config.Config) (doctor.Parts, error)) *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Try every hop on the way to the backends, and say which one does not work",
		Long: `Try every hop on its own and in order: configuration, files, DNS, TCP, egress proxy, TLS, clock, WebSocket upgrade, token,
tunnel, round trip, transfer, and for each route policy, backend and SSH. It goes the way of the tunnels, and may run beside a
live sidecar. The exit code is 0 when nothing fails, else 2 for the configuration, 3 for the token or the policy, 1 for the rest.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, *flags, build) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.asJSON, "json", false, "print the whole report as JSON instead of a table")
	fs.StringArrayVar(&f.routes, "route", nil, "a `ROUTE` to try; may be given repeatedly; none: those of the listeners")
	fs.DurationVar(&f.timeout, "timeout", 10*time.Second, "bound of each probe; all together have 12 times that")
	fs.StringVar(&f.throughput, "throughput", "", "measure the throughput with this `SIZE`, such as 16MiB; at most 64MiB")
	fs.StringVar(&f.ssh.User, "ssh-user", "", "log in as this `USER` at SSH servers behind passthrough routes, and out again")
	fs.StringVar(&f.ssh.KeyFile, "ssh-key", "", "private key `FILE` for that; none: the agent's keys")
	fs.StringVar(&f.ssh.KnownHosts, "known-hosts", "", "`FILE` with the host keys that are right; none: ~/.ssh/known_hosts")
	fs.StringVar(&f.ssh.KnownAs, "known-as", "", "`NAME` under which that file has the server; none: the listener's address and the route's name")
	return cmd
}

func (f doctorFlags) run(cmd *cobra.Command, flags sharedconfig.Flags, build func(config.Config) (doctor.Parts, error)) error {
	size, err := f.check()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := cmd.OutOrStdout()
	table := doctor.NewTable(out, doctor.StyleOf(os.Getenv, isTerminal(out)))
	cfg := doctor.Config{
		Version: version, Source: flags.File, Load: loader(flags), Build: build,
		Routes: f.routes, Timeout: f.timeout, Size: size, SSH: f.ssh,
	}
	if !f.asJSON {
		cfg.Each = table.Result
	}
	report := doctor.Run(ctx, cfg)
	if f.asJSON {
		err = printJSON(out, report)
	} else {
		err = table.Conclusion(report)
	}
	if err != nil {
		return errs.Wrap(errs.Internal, err, "writing the report")
	}
	if report.Exit != errs.ExitDone {
		os.Exit(report.Exit) // the report has said why
	}
	return nil
}

// check refuses flags that do not fit, and returns the size of the throughput in bytes.
func (f doctorFlags) check() (int64, error) {
	if f.timeout < 100*time.Millisecond || f.timeout > 5*time.Minute {
		return 0, errs.New(errs.ConfigInvalid, "--timeout: %s: allowed: from 100ms to 5m", f.timeout)
	}
	if f.ssh.KeyFile != "" && f.ssh.User == "" {
		return 0, errs.New(errs.ConfigInvalid, "--ssh-key: needs --ssh-user")
	}
	if slices.Contains(f.routes, "") {
		return 0, errs.New(errs.ConfigInvalid, "--route: a route has a name")
	}
	if f.throughput == "" {
		return 0, nil
	}
	size, ok := parseSize(f.throughput)
	if !ok || size < 1 || size > link.ProbeBytes {
		return 0, errs.New(errs.ConfigInvalid, "--throughput: %q: allowed: a size such as 16MiB, at most %d bytes", f.throughput, int64(link.ProbeBytes))
	}
	return size, nil
}

// parseSize reads a size as configuration has it; what is no size, or far too large, is false.
func parseSize(s string) (int64, bool) {
	number, shift := s, 0
	for unit, bits := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			number, shift = n, bits
		}
	}
	if shift == 0 {
		number = strings.TrimSuffix(s, "B")
	}
	n, err := strconv.ParseUint(number, 10, 32)
	return int64(n) << shift, err == nil
}

func loader(flags sharedconfig.Flags) func() (config.Config, error) {
	return func() (config.Config, error) {
		loaded, err := sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: flags})
		if err != nil {
			return config.Config{}, err
		}
		return loaded.Config, nil
	}
}

// isTerminal says whether w is a character device.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
