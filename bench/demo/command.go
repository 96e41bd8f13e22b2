// Package demo shows fairlead at work on one machine: a gateway, a sidecar and an SSH server in one process, with keys,
// certificates and tokens made on the spot.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fairlead/bench/cluster"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// preferredPort is where the sidecar listens for SSH if it may choose.
const preferredPort = 2222

// options are the flags of the command.
type options struct {
	port, gatewayPort, adminPort, sidecarAdminPort int
	anyPort                                        bool // port is a preference: another one will do if it is in use
	dir                                            string
	verbose, check                                 bool
	replicas                                       int // 0: one gateway, in this process
	kill                                           bool
}

// Command is `bench demo`.
func Command() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start a gateway, a sidecar and an SSH server on this machine, and say how to use them",
		Long: "Starts a gateway, a sidecar and an SSH server on loopback, with keys, certificates and a token made on the spot, and\n" +
			"prints commands to try. It needs nothing but this machine, and ends with Ctrl-C.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.anyPort = !cmd.Flags().Changed("port")
			if err := o.alone(cmd.Flags()); err != nil {
				return err
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return errs.Wrap(errs.ConfigInvalid, err, "command line")
	})
	flags := cmd.Flags()
	flags.IntVar(&o.port, "port", preferredPort, "port of the sidecar's SSH listener; 0: any free one; without the flag also if 2222 is in use")
	flags.IntVar(&o.gatewayPort, "gateway-port", 0, "port of the gateway; 0: any free one")
	flags.IntVar(&o.adminPort, "admin-port", 0, "port of the gateway's admin API; 0: any free one")
	flags.IntVar(&o.sidecarAdminPort, "sidecar-admin-port", 0, "port of the sidecar's admin API; 0: any free one")
	flags.StringVar(&o.dir, "dir", "", "directory for keys, configurations and logs, which is kept (default: a temporary one, removed at the end)")
	flags.BoolVar(&o.verbose, "verbose", false, "log to standard error instead of a file")
	flags.BoolVar(&o.check, "check", false, "run the printed SSH command and a transfer, then end; fails if they do")
	flags.IntVar(&o.replicas, "replicas", 0, "so many gateways that work as one, with Redis and a load balancer, each a process; transfers run through them (default: one gateway, and you)")
	flags.BoolVar(&o.kill, "kill", false, "with --replicas: kill a replica now and then, and cut the sidecar's connections")
	return cmd
}

// alone refuses flags that mean nothing together.
func (o *options) alone(flags *pflag.FlagSet) error {
	several := flags.Changed("replicas")
	if several && (o.replicas < 2 || o.replicas > mostReplicas) {
		return errs.New(errs.ConfigInvalid, "--replicas is %d; allowed: 2 to %d", o.replicas, mostReplicas)
	}
	if o.kill && !several {
		return errs.New(errs.ConfigInvalid, "--kill is allowed with --replicas only")
	}
	for _, name := range []string{"port", "gateway-port", "admin-port", "sidecar-admin-port", "verbose"} {
		if several && flags.Changed(name) {
			return errs.New(errs.ConfigInvalid, "--%s is not allowed with --replicas: every program has an address, and a log, of its own", name)
		}
	}
	return nil
}

// run shows the demo until ctx ends. An end that was asked for is no failure, unless it cuts a check short.
func (o *options) run(ctx context.Context, out, errOut io.Writer) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	dir, remove, err := workDir(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if o.replicas > 0 {
		err = o.showReplicas(ctx, dir, out)
		if err != nil && ctx.Err() != nil && !o.check && !errors.Is(err, cluster.ErrHash) {
			return nil // ended before it was ready
		}
		return err
	}
	log, closeLog, err := openLog(o.verbose, dir, errOut)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	err = o.show(ctx, dir, log, out)
	if err != nil && ctx.Err() != nil && !o.check {
		return nil // ended before it was ready
	}
	if err != nil && !o.verbose && errs.CodeOf(err).Category() != errs.Configuration {
		showLog(dir, errOut)
	}
	return err
}

func (o *options) show(ctx context.Context, dir string, log, out io.Writer) (err error) {
	d, err := start(ctx, config{dir: dir, port: o.port, anyPort: o.anyPort, gatewayPort: o.gatewayPort, adminPort: o.adminPort,
		sidecarAdminPort: o.sidecarAdminPort, log: log, startSSH: testbed.StartSSH})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := io.WriteString(out, d.instructions(o.dir == "", o.verbose, o.check)); err != nil {
		return err
	}
	if o.check {
		return d.check(ctx, out)
	}
	return d.wait(ctx)
}

func (o *options) validate() error {
	const highest = 65535
	for _, f := range []struct {
		name string
		port int
	}{{"port", o.port}, {"gateway-port", o.gatewayPort}, {"admin-port", o.adminPort}, {"sidecar-admin-port", o.sidecarAdminPort}} {
		if f.port < 0 || f.port > highest {
			return errs.New(errs.ConfigInvalid, "--%s is %d; allowed: 0 to %d", f.name, f.port, highest)
		}
	}
	return nil
}

// openLog opens where both programs log, and says how to close it.
func openLog(verbose bool, dir string, errOut io.Writer) (io.Writer, func() error, error) {
	if verbose {
		return errOut, func() error { return nil }, nil
	}
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return f, f.Close, nil
}

// showLog prints the end of the log, which may be removed with its directory before anybody can look at it.
func showLog(dir string, errOut io.Writer) {
	const most = 8 << 10
	text, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		return // the failure itself is what matters
	}
	fmt.Fprintf(errOut, "the end of the log:\n%s\n", text[max(0, len(text)-most):])
}
