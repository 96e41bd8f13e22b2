// Command bench demonstrates fairlead and measures it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"fairlead/bench/chaos"
	"fairlead/bench/cluster"
	"fairlead/bench/compare"
	"fairlead/bench/demo"
	"fairlead/bench/load"
	"fairlead/bench/matrix"
	"fairlead/bench/peers"
	"fairlead/bench/profiles"
	"fairlead/shared/errs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := &cobra.Command{Use: "bench", Short: "Demonstrate and measure fairlead", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(demo.Command(), compare.Command(compare.WithTunnels(load.OpenTunnels)), matrix.Command(),
		chaos.Command(), cluster.Command(), profiles.Command(), peers.RelayCommand(), load.ClientCommand(), load.ServerCommand())
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(errs.ExitCode(err))
	}
}
