package config

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Program is what the config command needs to know of a program.
type Program[T Validator] struct {
	Name    string   // such as "gateway"
	Default func() T // required
	Flags   *Flags   // registered by the program on its root command; required
	Environ []string // "NAME=value"; nil is the process's environment
}

// Command builds the sub-commands `config check`, `config defaults` and `config reference`. Check prints "ok", or returns
// the error that lists all problems: the program prints it and exits with errs.ExitCode, as for every other command.
func Command[T Validator](p Program[T]) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check and explain the configuration", Args: cobra.NoArgs}
	cmd.AddCommand(
		leafCommand("check", "Check the configuration: print ok, or every problem and exit with 2", p.check),
		leafCommand("defaults", "Print every default as a configuration file", p.defaults),
		leafCommand("reference", "Print the reference of all keys as Markdown", p.reference),
	)
	return cmd
}

func leafCommand(use, short string, run func(*cobra.Command) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd) }}
}

func (p Program[T]) check(cmd *cobra.Command) error {
	if _, err := Load(p.Default(), Input{Flags: *p.Flags, Environ: p.Environ}); err != nil {
		return err
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), "ok")
	return err
}

func (p Program[T]) defaults(cmd *cobra.Command) error {
	return WriteDefaults(cmd.OutOrStdout(), p.Default())
}

func (p Program[T]) reference(cmd *cobra.Command) error {
	return WriteReference(cmd.OutOrStdout(), ReferenceTitle(p.Name), p.Default())
}

// ReferenceTitle is the title of a program's configuration reference.
func ReferenceTitle(program string) string { return "Configuration of the " + program }
