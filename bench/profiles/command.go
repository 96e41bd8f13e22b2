package profiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"fairlead/shared/errs"
)

// Command is `bench profiles`.
func Command() *cobra.Command {
	var only []string
	cfg := Config{}
	out := filepath.Join("bin", "bench")
	cmd := &cobra.Command{
		Use:   "profiles",
		Short: "Measure the sidecar's profiles over bad paths",
		Long: "Runs a gateway, a sidecar of each profile and a path between them that is far, narrow, or stalls and breaks as lossy ones do:\n" +
			"keystrokes, a bulk transfer and new connections side by side. Prints a table in Markdown.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for _, p := range Paths() {
				if len(only) == 0 || slices.Contains(only, p.Name) {
					cfg.Paths = append(cfg.Paths, p)
				}
			}
			if len(cfg.Paths) == 0 {
				return errs.New(errs.ConfigInvalid, "--path %v: no such path; allowed: near, lossy, slow", only)
			}
			if err := os.MkdirAll(out, 0o755); err != nil {
				return err
			}
			log, err := os.Create(filepath.Join(out, "profiles.log"))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, log.Close()) }()
			cfg.Log = log
			w := cmd.OutOrStdout()
			for _, p := range cfg.Paths {
				fmt.Fprintf(w, "- %s: %s\n", p.Name, p.Doc)
			}
			fmt.Fprintf(w, "\n%s\n", header)
			return Run(cmd.Context(), cfg, func(r Row) { fmt.Fprintln(w, r) })
		},
	}
	cmd.Flags().StringSliceVar(&only, "path", nil, "near, lossy or slow; all if not given")
	cmd.Flags().DurationVar(&cfg.For, "for", time.Minute, "time for each profile on each path")
	cmd.Flags().Uint64Var(&cfg.Seed, "seed", 1, "of what goes wrong when; the same for each profile")
	return cmd
}

const header = `| path | profile | echo p50 / p95 / max | bulk MiB/s | new connections | failed | first byte p95 | lost | resumes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |`

// String is the row of the table.
func (r Row) String() string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%d", d.Milliseconds()) }
	return fmt.Sprintf("| %s | %s | %s / %s / %s ms | %.2f | %d | %d | %s ms | %d | %d |", r.Path, r.Profile, ms(r.P50), ms(r.P95), ms(r.Max), r.Bulk,
		r.Opened, r.Failed, ms(r.OpenP95), r.Lost, r.Resumes)
}
