package demo

import (
	"fmt"
	"net"
	"strings"

	"fairlead/bench/cluster"
	"fairlead/shared/testbed"
)

// instructions is the block that tells how to use the demo of several gateways.
func (d *replicas) instructions(temporary, check bool, dir string) string {
	var b strings.Builder
	s := d.site
	fmt.Fprintf(&b, "\nfairlead demo: %d gateways that work as one, Redis, a load balancer, a sidecar and an SSH server run.\n", len(s.Replicas))
	if host, port, err := net.SplitHostPort(s.Sidecars[0].Addr(cluster.RouteSSH)); err == nil {
		fmt.Fprintf(&b, `
Through the sidecar, end to end to the SSH server; such a session goes on when its connection is cut and comes back to another
gateway:
  ssh -F none -p %s -i %s -o IdentitiesOnly=yes -o UserKnownHostsFile=%s -o HostKeyAlias=%s -o StrictHostKeyChecking=yes %s@%s
`, port, s.SSH.KeyFile(), s.SSH.KnownHostsFile(), testbed.HostAlias, s.SSH.User(), host)
	}
	b.WriteString("\nAddresses:\n")
	row := func(name, text string) { fmt.Fprintf(&b, "  %-10s %s\n", name, text) }
	row("balancer", fmt.Sprintf("wss://%s, which spreads at random", s.Balancer.Addr()))
	for _, one := range s.Replicas {
		row(one.Name, fmt.Sprintf("wss://%s, page %s", one.Address(), one.Admin()))
	}
	one := s.Sidecars[0]
	row("sidecar", fmt.Sprintf("%s for %s, page %s", one.Addr(cluster.RouteSSH), cluster.RouteSSH, one.Admin()))
	row("redis", s.Redis.Addr())
	files := dir
	if temporary {
		files += ", removed at the end"
	}
	row("files", files+" (configurations, logs)")
	fmt.Fprintf(&b, "\n%d transfers at a time run through the sidecar, each compared by SHA-256.\n", transfers)
	if d.kill {
		b.WriteString("A replica is killed now and then, and the sidecar's connections are cut.\n")
	}
	if !check {
		b.WriteString("Ctrl-C ends the demo.\n\n")
	}
	return b.String()
}
