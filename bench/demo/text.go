package demo

import (
	"fmt"
	"strings"

	"fairlead/shared/testbed"
)

// sshCommand is the command that a person can type; a shell takes it as it is.
func (d *demo) sshCommand() string {
	return fmt.Sprintf("ssh -F none -p %d -i %s -o IdentitiesOnly=yes -o UserKnownHostsFile=%s -o HostKeyAlias=%s -o StrictHostKeyChecking=yes %s@localhost",
		d.port(routeSSH), d.server.KeyFile(), d.server.KnownHostsFile(), testbed.HostAlias, d.server.User())
}

// serverName says which SSH server the backend is.
func (d *demo) serverName() string {
	if _, embedded := d.server.(*testbed.Embedded); embedded {
		return "an SSH server of its own, without terminals, since this machine has no sshd"
	}
	if path, ok := testbed.SSHDPath(); ok {
		return "OpenSSH's server, " + path
	}
	return "OpenSSH's server"
}

// webURL is where the forward route's listener is.
func (d *demo) webURL() string { return fmt.Sprintf("http://localhost:%d/", d.port(routeWeb)) }

// instructions is the block that tells how to use the demo.
func (d *demo) instructions(temporary, verbose, check bool) string {
	var b strings.Builder
	client := "-F " + d.site.sshConfigFile
	fmt.Fprintf(&b, `
fairlead demo: gateway, sidecar and SSH server run.

Through the sidecar, end to end to the SSH server (route %s, mode passthrough):
  %s
  scp %s README.md demo:%s/copy
`, routeSSH, d.sshCommand(), client, d.site.dir)
	if d.site.repository != "" {
		fmt.Fprintf(&b, "  GIT_SSH_COMMAND=\"ssh %s\" git clone demo:%s %s-clone\n", client, d.site.repository, d.site.repository)
	}
	fmt.Fprintf(&b, `
Without a listener, as OpenSSH's ProxyCommand, from the project's root:
  ssh %s -o ProxyCommand="go run ./sidecar connect %s --config %s" demo

To a web server behind the SSH server (route %s, mode forward):
  curl %s

Who did what is in the audit log; whether it is as it was written, from the project's root:
  go run ./gateway audit verify %s
`, client, routeSSH, d.site.sidecarConfigFile, routeWeb, d.webURL(), d.site.auditFile())
	gatewayAdmin, sidecarAdmin := d.gateway.AdminAddr(), d.sidecar.AdminAddr()
	b.WriteString("\nAddresses:\n")
	for _, row := range [][2]string{
		{"gateway", fmt.Sprintf("wss://%s", d.gateway.Addr())},
		{"  page", fmt.Sprintf("http://%s/", gatewayAdmin)},
		{"  status", fmt.Sprintf("http://%s/api/tunnel/diagnostics", gatewayAdmin)},
		{"  metrics", fmt.Sprintf("http://%s/metrics", gatewayAdmin)},
		{"sidecar", fmt.Sprintf("%s for ssh, %s for web", d.sidecar.Addr(routeSSH), d.sidecar.Addr(routeWeb))},
		{"  status", fmt.Sprintf("http://%s/api/status", sidecarAdmin)},
		{"  metrics", fmt.Sprintf("http://%s/metrics", sidecarAdmin)},
		{"backend", fmt.Sprintf("%s, %s", d.server.Addr(), d.serverName())},
		{"files", d.files(temporary, verbose)},
	} {
		fmt.Fprintf(&b, "  %-10s %s\n", row[0], row[1])
	}
	if !check {
		b.WriteString("\nCtrl-C ends the demo.\n")
	}
	return b.String()
}

// files says where the files are and what becomes of them.
func (d *demo) files(temporary, verbose bool) string {
	line := d.site.dir + " (audit log: " + auditFile
	if !verbose {
		line += ", log: " + logFile
	}
	line += ")"
	if temporary {
		line += ", removed at the end"
	}
	return line
}
