// Command sidecar carries an application's local connections through a gateway to SSH backends.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
	"fairlead/sidecar/app"
	"fairlead/sidecar/config"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "sidecar:", err)
		os.Exit(errs.ExitCode(err))
	}
}

func root() *cobra.Command {
	var flags sharedconfig.Flags
	cmd := &cobra.Command{Use: "sidecar", Short: "Carry local connections through a gateway to SSH backends", SilenceUsage: true, SilenceErrors: true}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errs.Wrap(errs.ConfigInvalid, err, "command line") })
	flags.Register(cmd.PersistentFlags())
	cmd.AddCommand(
		&cobra.Command{Use: "run", Short: "Run the sidecar", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), flags) }},
		&cobra.Command{Use: "connect ROUTE", Short: "Connect standard input and output to a route, as OpenSSH's ProxyCommand wants it", Args: oneRoute,
			RunE: func(cmd *cobra.Command, args []string) error { return connect(cmd.Context(), flags, args[0]) }},
		doctorCommand(&flags, app.DoctorParts),
		spoolCommand(func() (spoolPlace, error) { return placeOfSpool(flags) }),
		sharedconfig.Command(sharedconfig.Program[config.Config]{Name: "sidecar", Default: config.Default, Flags: &flags}),
		&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) }},
	)
	cmd.AddCommand(statusCommands(&flags)...)
	return cmd
}

// placeOfSpool reads where the spool is.
func placeOfSpool(flags sharedconfig.Flags) (spoolPlace, error) {
	loaded, err := sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: flags})
	if err != nil {
		return spoolPlace{}, err
	}
	c := loaded.Config
	if c.Spool.Dir == "" {
		return spoolPlace{}, errs.New(errs.ConfigInvalid, "spool.dir is not set, so there is no spool")
	}
	return spoolPlace{Dir: c.Spool.Dir, KeyFile: c.Spool.KeyFile, OldKeyFiles: c.Spool.OldKeyFiles, Admin: c.Admin.Listen}, nil
}

func oneRoute(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errs.New(errs.ConfigInvalid, "connect: %d arguments; allowed is one, the route", len(args))
	}
	return nil
}

// start loads the configuration and makes the logger.
func start(flags sharedconfig.Flags, w io.Writer) (config.Config, *slog.Logger, app.Options, error) {
	load := func() (*sharedconfig.Loaded[config.Config], error) {
		return sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: flags})
	}
	loaded, err := load()
	if err != nil {
		return config.Config{}, nil, app.Options{}, err
	}
	cfg := loaded.Config
	instance, _ := os.Hostname() // without a name the log line just lacks one
	log, level, err := logging.New(logging.Config{Level: cfg.Log.Level, Format: cfg.Log.Format, Writer: w, Instance: instance, Version: version, Component: "sidecar"})
	if err != nil {
		return cfg, nil, app.Options{}, err
	}
	return cfg, log, app.Options{Logger: log, SetLevel: level.Set, Instance: instance, Version: version, Loaded: loaded, Load: load,
		InPod: os.Getenv("KUBERNETES_SERVICE_HOST") != ""}, nil
}

func run(ctx context.Context, flags sharedconfig.Flags) error {
	cfg, log, opts, err := start(flags, os.Stdout)
	if err != nil {
		return err
	}
	if len(cfg.Listeners) == 0 {
		return errs.New(errs.ConfigInvalid, "listeners: none; run needs at least one")
	}
	// Signals are handled before anything is built, so that one which comes early still ends in order.
	var a *app.App
	built := make(chan struct{})
	ctx, stop, err := lifecycle.HandleSignals(ctx, lifecycle.SignalConfig{Log: log, Reload: func(ctx context.Context) {
		select {
		case <-built:
			_, _ = a.ReloadFile() // it says what came of it
		case <-ctx.Done():
		}
	}})
	if err != nil {
		return err
	}
	defer stop()
	if a, err = app.New(cfg, opts); err != nil {
		return err
	}
	log.Info("listening", listening(a, cfg)...) // before a reload can take a listener away
	close(built)
	err = a.Run(ctx)
	if sig, ok := lifecycle.SignalOf(ctx); ok && !a.WasReady() && err == nil {
		os.Exit(sig.ExitCode()) // ended before it was ready
	}
	return err
}

func listening(a *app.App, cfg config.Config) []any {
	var at []any
	for _, l := range cfg.Listeners {
		at = append(at, slog.String("listener."+l.Name, a.Addr(l.Name).String()))
	}
	if addr := a.AdminAddr(); addr != nil {
		at = append(at, slog.String("admin", addr.String()))
	}
	return at
}

// connect carries standard input and output. Only what goes wrong is logged, to standard error.
func connect(ctx context.Context, flags sharedconfig.Flags, route string) error {
	cfg, log, opts, err := start(flags, os.Stderr)
	if err != nil {
		return err
	}
	if cfg.Log.Level == config.Default().Log.Level {
		if err := opts.SetLevel("error"); err != nil {
			return err
		}
	}
	ctx, stop, err := lifecycle.HandleSignals(ctx, lifecycle.SignalConfig{Log: log})
	if err != nil {
		return err
	}
	defer stop()
	return app.Connect(ctx, cfg, opts, route, os.Stdin, os.Stdout)
}
