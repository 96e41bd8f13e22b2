package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"fairlead/shared/config"
)

// Validate returns everything that is wrong and that the struct's tags cannot say.
func (c Config) Validate() []config.Problem {
	var check config.Check
	c.Gateway.validate(&check)
	if c.Tunnels.Max < c.Tunnels.Min {
		check.Refuse("tunnels.max", "allowed: at least tunnels.min, which is %d", c.Tunnels.Min)
	}
	if c.Reconnect.Cap < c.Reconnect.Base {
		check.Refuse("reconnect.cap", "allowed: at least reconnect.base, which is %s", config.FormatDuration(c.Reconnect.Base))
	}
	validateListeners(&check, c.Listeners)
	c.Spool.validate(&check, c.Listeners)
	if c.StateFile != "" && !filepath.IsAbs(c.StateFile) {
		check.Refuse("state_file", "allowed: an absolute path")
	}
	c.Tunnel.Validate(&check, "tunnel")
	if c.Admin.Listen != "" {
		check.Listen("admin.listen", c.Admin.Listen, false)
	}
	return check.Problems
}

func (g Gateway) validate(check *config.Check) {
	if len(g.Endpoints) == 0 {
		check.Refuse("gateway.endpoints", "allowed: at least one URL that begins with wss://")
	}
	for i, e := range g.Endpoints {
		key := config.At("gateway.endpoints", i)
		g.validateEndpoint(check, key, e)
		if slices.Contains(g.Endpoints[:i], e) {
			check.Refuse(key, "given twice")
		}
	}
	g.validateWeights(check)
	if g.ClientCertFile == "" && g.ClientKeyFile != "" {
		check.Refuse("gateway.client_cert_file", "required, since gateway.client_key_file is set")
	}
	if g.ClientCertFile != "" && g.ClientKeyFile == "" {
		check.Refuse("gateway.client_key_file", "required, since gateway.client_cert_file is set")
	}
	if g.Token != "" && g.TokenFile != "" {
		check.Refuse("gateway.token", "allowed: either gateway.token or gateway.token_file, not both")
	}
	if g.Proxy != "" {
		check.URL("gateway.proxy", g.Proxy, "http", "https")
	}
}

// validateWeights wants one number for each endpoint, of which one at least is above 0.
func (g Gateway) validateWeights(check *config.Check) {
	if len(g.Weights) == 0 {
		return
	}
	if len(g.Weights) != len(g.Endpoints) {
		check.Refuse("gateway.weights", "%d numbers for %d endpoints; allowed: one for each, in their order", len(g.Weights), len(g.Endpoints))
	}
	sum := 0
	for i, w := range g.Weights {
		n, err := strconv.Atoi(w)
		if err != nil || n < 0 || n > maxWeight {
			check.Refuse(config.At("gateway.weights", i), "allowed: a whole number from 0 to %d", maxWeight)
			return
		}
		sum += n
	}
	if sum == 0 {
		check.Refuse("gateway.weights", "allowed: at least one number above 0")
	}
}

const maxWeight = 1000

func (s Spool) validate(check *config.Check, listeners []Listener) {
	switch {
	case s.Dir != "" && !filepath.IsAbs(s.Dir):
		check.Refuse("spool.dir", "allowed: an absolute path")
	case s.Dir == "" && slices.ContainsFunc(listeners, func(l Listener) bool { return l.Delivery == DeliverySpool }):
		check.Refuse("spool.dir", "required, since a listener has delivery: spool")
	}
	if s.Retry.Cap < s.Retry.Base {
		check.Refuse("spool.retry.cap", "allowed: at least spool.retry.base, which is %s", config.FormatDuration(s.Retry.Base))
	}
	if s.KeyFile == "" && len(s.OldKeyFiles) > 0 {
		check.Refuse("spool.key_file", "required, since spool.old_key_files is set")
	}
}

func (g Gateway) validateEndpoint(check *config.Check, key, endpoint string) {
	u := check.URL(key, endpoint, "wss", "ws")
	switch {
	case u == nil:
	case u.User != nil || u.RawQuery != "":
		check.Refuse(key, "allowed: a URL without user name, password and query; the token goes into gateway.token_file")
	case u.Scheme == "ws" && !g.AllowPlaintext:
		check.Refuse(key, "allowed: wss://; ws:// only with gateway.allow_plaintext: true")
	}
}

func validateListeners(check *config.Check, listeners []Listener) {
	names, addresses := make(map[string]int), make(map[string]int)
	for i, l := range listeners {
		key := config.At("listeners", i)
		check.Name(key+".name", l.Name)
		check.Listen(key+".listen", l.Listen, true)
		check.Name(key+".route", l.Route)
		unique(check, names, key+".name", l.Name, i)
		if !TakesAnyPort(l.Listen) {
			unique(check, addresses, key+".listen", l.Listen, i)
		}
	}
}

// TakesAnyPort reports whether two listeners may share the address, since each gets a port of its own.
func TakesAnyPort(address string) bool {
	return len(address) > 2 && address[len(address)-2:] == ":0"
}

func unique(check *config.Check, seen map[string]int, key, value string, i int) {
	if first, twice := seen[value]; twice && value != "" {
		check.Refuse(key, "%s", fmt.Sprintf("used already by %s", config.At("listeners", first)))
		return
	}
	seen[value] = i
}
