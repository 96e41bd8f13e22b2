package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"fairlead/bench/peers"
	"fairlead/shared/errs"
)

// all is every scenario, one after the other.
const all = "all"

// flags of the command.
type flags struct {
	short, json bool
	seed        uint64
	bin, dir    string
}

// Command is `bench cluster`.
func Command() *cobra.Command {
	f := &flags{}
	var names []string
	long := strings.Builder{}
	for _, s := range Scenarios() {
		names = append(names, s.Name)
		fmt.Fprintf(&long, "  %-10s %s\n", s.Name, s.What)
	}
	cmd := &cobra.Command{
		Use:   "cluster SCENARIO|all",
		Short: "Run several gateways as one and show that connections survive what happens to them",
		Long: "Starts three gateways, a Redis, a load balancer and sidecars on this machine, each a process of its own, and lets\n" +
			"something happen to them. It prints figures and fails when a criterion is missed:\n\n" + long.String(),
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: append(names, all),
		RunE:      func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	cmd.Flags().BoolVar(&f.short, "short", false, "sizes for tests; what depends on the machine's speed is reported and not judged")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON instead of tables")
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "of what is done when; 0: a new one, which is printed")
	cmd.Flags().StringVar(&f.bin, "bin", "", "directory of the programs sidecar and gateway; default: they are built")
	cmd.Flags().StringVar(&f.dir, "dir", "", "directory for configurations and logs, which is kept (default: a temporary one, kept after a failure)")
	return cmd
}

func (f *flags) run(cmd *cobra.Command, name string) (err error) {
	list := Scenarios()
	if name != all {
		one, ok := Find(name)
		if !ok {
			return errs.New(errs.ConfigInvalid, "there is no scenario %q", name)
		}
		list = []Scenario{one}
	}
	if err := ForgetEnvironment(); err != nil {
		return err
	}
	if f.seed == 0 {
		f.seed = rand.Uint64()
	}
	dir, remove, err := f.directory(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove(err == nil)) }()
	if f.bin == "" {
		f.bin = filepath.Join(dir, "bin")
		if err := os.MkdirAll(f.bin, 0o700); err != nil {
			return err
		}
		if err := peers.Build(cmd.Context(), f.bin); err != nil {
			return err
		}
	}
	return f.scenarios(cmd.Context(), list, dir, cmd.OutOrStdout(), cmd.ErrOrStderr())
}

func (f *flags) scenarios(ctx context.Context, list []Scenario, dir string, out, errOut io.Writer) error {
	var results []*Result
	var failed []error
	for _, s := range list {
		r, err := s.Run(ctx, Options{Dir: filepath.Join(dir, s.Name), Bin: f.bin, Short: f.short, Seed: f.seed, Note: tell(errOut, s.Name)})
		if err != nil {
			err = fmt.Errorf("%s: %w", s.Name, err)
		}
		results, failed = append(results, r), append(failed, err, r.Err())
		if !f.json {
			failed = append(failed, r.WriteText(out))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if f.json {
		failed = append(failed, writeJSON(out, results))
	}
	return errors.Join(failed...)
}

// directory makes the directory to work in and says how to remove it.
func (f *flags) directory(errOut io.Writer) (dir string, remove func(good bool) error, err error) {
	if f.dir != "" {
		dir, err = filepath.Abs(f.dir)
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		return dir, func(bool) error { return nil }, err
	}
	dir, err = os.MkdirTemp("", "fairlead-cluster-")
	return dir, func(good bool) error {
		if !good {
			fmt.Fprintln(errOut, "logs and configurations are in", dir)
			return nil
		}
		return os.RemoveAll(dir)
	}, err
}
