package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/config"
	"fairlead/sidecar/status"
	"fairlead/sidecar/status/view"
)

// statusCommands are the commands that ask a running sidecar.
func statusCommands(flags *sharedconfig.Flags) []*cobra.Command {
	return []*cobra.Command{statusCommand(flags), waitCommand(flags), drainCommand(flags), quitCommand(flags), reconnectCommand(flags)}
}

// asking makes a command that asks a running sidecar.
func asking(flags *sharedconfig.Flags, use, short string, run func(cmd *cobra.Command, c *status.Client) error) *cobra.Command {
	var admin string
	cmd := &cobra.Command{Use: use, Short: short, Args: noArguments, SilenceUsage: true, SilenceErrors: true}
	cmd.Flags().StringVar(&admin, "admin", "", "host:port of the sidecar's admin API; default: admin.listen of the configuration")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := client(*flags, admin)
		if err != nil {
			return err
		}
		defer c.Close()
		return run(cmd, c)
	}
	return cmd
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return errs.New(errs.ConfigInvalid, "%s: %d arguments; allowed is none", cmd.Name(), len(args))
	}
	return nil
}

// readable is a configuration of which only what can be read counts: whoever asks a running sidecar needs one key of it,
// and a token that is missing now must not keep a probe from asking.
type readable config.Config

// Validate implements sharedconfig.Validator.
func (readable) Validate() []sharedconfig.Problem { return nil }

func client(flags sharedconfig.Flags, admin string) (*status.Client, error) {
	if admin == "" {
		loaded, err := sharedconfig.Load(readable(config.Default()), sharedconfig.Input{Flags: flags})
		if err != nil {
			return nil, errs.Wrap(errs.CodeOf(err), err, "the address of the admin API is not known; --admin gives it")
		}
		admin = loaded.Config.Admin.Listen
	}
	if admin == "" {
		return nil, errs.New(errs.ConfigInvalid, "admin.listen is empty: this sidecar has no admin API to ask")
	}
	return status.NewClient(status.ClientConfig{Address: admin})
}

func statusCommand(flags *sharedconfig.Flags) *cobra.Command {
	var watch, asJSON bool
	cmd := asking(flags, "status", "Show how the running sidecar is", func(cmd *cobra.Command, c *status.Client) error {
		switch {
		case watch && asJSON:
			return errs.New(errs.ConfigInvalid, "status: --watch and --json: allowed is one of them")
		case watch:
			return view.Watch(cmd.Context(), view.WatchConfig{Source: c, In: os.Stdin, Out: os.Stdout, Color: colored(os.Stdout)})
		case asJSON:
			return raw(cmd.Context(), cmd.OutOrStdout(), c)
		}
		return summary(cmd.Context(), cmd.OutOrStdout(), c)
	})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it live until q is pressed; without a terminal: a line for each change")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer of GET /api/status as it is")
	return cmd
}

func summary(ctx context.Context, w io.Writer, c *status.Client) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	f, isFile := w.(*os.File)
	for _, line := range view.Summary(st, time.Now()) {
		if isFile && colored(f) {
			fmt.Fprintln(w, line.ANSI())
		} else {
			fmt.Fprintln(w, line)
		}
	}
	return nil
}

func raw(ctx context.Context, w io.Writer, c *status.Client) error {
	body, err := c.Raw(ctx)
	if err != nil {
		return err
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		body = status.CleanJSON(body)
	}
	_, err = w.Write(body)
	return err
}

// colored says whether f shows colours and is wanted to (https://no-color.org).
func colored(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

func waitCommand(flags *sharedconfig.Flags) *cobra.Command {
	var timeout time.Duration
	cmd := asking(flags, "wait", "Wait until a connection would be carried; exit with 1 when time is up, with 4 when the sidecar has given up",
		func(cmd *cobra.Command, c *status.Client) error {
			if timeout < 0 {
				return errs.New(errs.ConfigInvalid, "wait: --timeout %s: allowed is 0s, which waits for ever, or more", timeout)
			}
			return c.Wait(cmd.Context(), cmd.OutOrStdout(), timeout)
		})
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait; 0s: for ever")
	return cmd
}

func drainCommand(flags *sharedconfig.Flags) *cobra.Command {
	var wait bool
	cmd := asking(flags, "drain", "Stop the running sidecar once its connections have ended", func(cmd *cobra.Command, c *status.Client) error {
		if err := c.Drain(cmd.Context()); err != nil {
			return err
		}
		if !wait {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "draining")
			return err
		}
		return c.Follow(cmd.Context(), cmd.OutOrStdout(), view.Progress)
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "show the progress, and wait until the sidecar has ended")
	return cmd
}

func quitCommand(flags *sharedconfig.Flags) *cobra.Command {
	return asking(flags, "quit", "Stop the running sidecar: it takes no more connections", func(cmd *cobra.Command, c *status.Client) error {
		if err := c.Quit(cmd.Context()); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "quitting")
		return err
	})
}

func reconnectCommand(flags *sharedconfig.Flags) *cobra.Command {
	return asking(flags, "reconnect", "Make the running sidecar try to connect now, also when it has given up", func(cmd *cobra.Command, c *status.Client) error {
		if err := c.Reconnect(cmd.Context()); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "reconnecting")
		return err
	})
}
