package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"fairlead/gateway/app"
	"fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
)

// policyCommand asks the policy of a configuration, without a gateway.
func policyCommand(flags *sharedconfig.Flags) *cobra.Command {
	var tenant, route string
	var asJSON bool
	test := &cobra.Command{Use: "test", Short: "Say whether a tenant may use a route, and which rule decides; exits with 3 when it may not", Args: cobra.NoArgs}
	test.Flags().StringVar(&tenant, "tenant", "", "tenant, such as payments/orders (required)")
	test.Flags().StringVar(&route, "route", "", "name of a route (required)")
	test.Flags().BoolVar(&asJSON, "json", false, "answer as JSON")
	test.RunE = func(cmd *cobra.Command, _ []string) error {
		if tenant == "" || route == "" {
			return errs.New(errs.ConfigInvalid, "--tenant and --route are required")
		}
		loaded, err := sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: *flags})
		if err != nil {
			return err
		}
		d, err := app.Explain(loaded.Config, tenant, route)
		if err != nil {
			return err
		}
		if asJSON {
			err = json.NewEncoder(cmd.OutOrStdout()).Encode(d)
		} else {
			_, err = fmt.Fprint(cmd.OutOrStdout(), d)
		}
		if err == nil && !d.Allowed {
			err = errs.New(errs.RouteForbidden, "tenant %q may not use route %q", tenant, route)
		}
		return err
	}
	cmd := &cobra.Command{Use: "policy", Short: "Ask the policy", Args: cobra.NoArgs}
	cmd.AddCommand(test)
	return cmd
}
