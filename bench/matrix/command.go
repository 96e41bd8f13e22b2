package matrix

import "github.com/spf13/cobra"

// Command is `bench matrix`. It works on the project that the working directory is the root of.
func Command() *cobra.Command {
	o := Options{Root: "."}
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Check or write the verification matrix, " + TableFile,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return Make(o)
		},
	}
	flags := cmd.Flags()
	flags.Bool("check", false, "fail when the table is out of date (the default)")
	flags.BoolVar(&o.Write, "write", false, "write the table")
	flags.BoolVar(&o.Strict, "strict", false, "fail when a criterion has no test")
	cmd.MarkFlagsMutuallyExclusive("check", "write")
	return cmd
}
