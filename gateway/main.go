// Command gateway bridges tunnels of sidecars, and plain WebSocket streams, to SSH backends.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"fairlead/gateway/app"
	"fairlead/gateway/auth"
	"fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(errs.ExitCode(err))
	}
}

func root() *cobra.Command {
	var flags sharedconfig.Flags
	cmd := &cobra.Command{Use: "gateway", Short: "Bridge tunnels to SSH backends", SilenceUsage: true, SilenceErrors: true}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errs.Wrap(errs.ConfigInvalid, err, "command line") })
	flags.Register(cmd.PersistentFlags())
	cmd.AddCommand(
		runCommand(&flags),
		token(&flags),
		policyCommand(&flags),
		auditCommand(),
		sharedconfig.Command(sharedconfig.Program[config.Config]{Name: "gateway", Default: config.Default, Flags: &flags}),
		&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) }},
	)
	return cmd
}

// runCommand is `gateway run`.
func runCommand(flags *sharedconfig.Flags) *cobra.Command {
	instance, _ := os.Hostname() // without a name the log line just lacks one
	cmd := &cobra.Command{Use: "run", Short: "Run the gateway", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&instance, "instance", instance, "name of this replica, the same after a restart; in a pod it is the pod's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), *flags, instance) }
	return cmd
}

func run(ctx context.Context, flags sharedconfig.Flags, instance string) error {
	load := func() (*sharedconfig.Loaded[config.Config], error) {
		return sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: flags})
	}
	loaded, err := load()
	if err != nil {
		return err
	}
	cfg := loaded.Config
	log, level, err := logging.New(logging.Config{Level: cfg.Log.Level, Format: cfg.Log.Format, Writer: os.Stdout, Instance: instance, Version: version, Component: "gateway"})
	if err != nil {
		return err
	}
	// Signals are handled before anything is built, so that one which comes early still ends in order.
	var a *app.App
	built := make(chan struct{})
	ctx, stop, err := lifecycle.HandleSignals(ctx, lifecycle.SignalConfig{Log: log, Reload: func(ctx context.Context) {
		select {
		case <-built:
			_, _ = a.ReloadFiles("signal") // it is logged
		case <-ctx.Done():
		}
	}})
	if err != nil {
		return err
	}
	defer stop()
	a, err = app.New(cfg, app.Options{Logger: log, SetLevel: level.Set, Level: level.String, Instance: instance, Version: version, Load: load, Loaded: loaded})
	if err != nil {
		return err
	}
	close(built)
	if sig, ok := lifecycle.SignalOf(ctx); ok {
		defer os.Exit(sig.ExitCode()) // ended before it was ready
	}
	log.Info("serving", attrs(a, cfg)...)
	return a.Run(ctx)
}

func attrs(a *app.App, cfg config.Config) []any {
	at := []any{slog.String("listen", a.Addr().String()), slog.Int("routes", len(cfg.Routes)), slog.Int("backends", len(cfg.Backends))}
	if addr := a.AdminAddr(); addr != nil {
		at = append(at, slog.String("admin", addr.String()))
	}
	return at
}

// token issues development tokens, for issuers with a secret.
func token(flags *sharedconfig.Flags) *cobra.Command {
	var tenant string
	var ttl time.Duration
	cmd := &cobra.Command{Use: "token", Short: "Issue a development token, for an issuer with hmac_secret_file", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant that the token speaks for (required)")
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token is valid")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if tenant == "" {
			return errs.New(errs.ConfigInvalid, "--tenant is required: the tenant that the token speaks for")
		}
		loaded, err := sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: *flags})
		if err != nil {
			return err
		}
		for _, i := range loaded.Config.Auth.Issuers {
			if i.HMACSecretFile == "" {
				continue
			}
			t, err := auth.Develop(auth.Issuer{Issuer: i.Issuer, Audience: i.Audience, HMACSecretFile: i.HMACSecretFile, Algorithms: i.AllowedAlgorithms(),
				Tenant: i.Tenant, Tier: i.Tier, Leeway: i.Leeway}, tenant, ttl, time.Now())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), t)
			return nil
		}
		return errs.New(errs.ConfigInvalid, "no issuer of auth.issuers has an hmac_secret_file, so there is nothing to sign a token with")
	}
	return cmd
}
