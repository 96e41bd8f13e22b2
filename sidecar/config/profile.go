package config

import (
	"time"

	"fairlead/shared/config"
)

// ProfileName is the profile that the configuration asks for.
func (c Config) ProfileName() string { return c.Profile }

// Profiles are the named sets of defaults. docs/profiles.md has what they do over a bad path, measured.
func (c Config) Profiles() []config.Profile[Config] {
	return []config.Profile[Config]{
		{Name: "stable", Doc: "a path that hardly ever fails, as inside a data centre: failures are told soon.", Defaults: stable()},
		{Name: "unstable", Doc: "a path that stalls and breaks, as over Wi-Fi, mobile networks and busy load balancers: it never gives up, notices dead paths sooner, and more connections wait for longer.",
			Defaults: unstable()},
		{Name: "low-bandwidth", Doc: "a slow path, as over satellites and metered links: one tunnel, little in flight so that a shell stays usable, much patience.",
			Defaults: lowBandwidth()},
	}
}

func stable() Config {
	c := Default()
	c.Profile = "stable"
	c.Gateway.ConnectTimeout = 5 * time.Second
	c.Reconnect.Base, c.Reconnect.Cap = 100*time.Millisecond, 10*time.Second
	c.Queue.Wait = 15 * time.Second
	return c
}

func unstable() Config {
	c := Default()
	c.Profile = "unstable"
	c.Gateway.ConnectTimeout, c.Gateway.Failback = 15*time.Second, 5*time.Minute
	c.Tunnels.Min = 2 // when one stalls, another one takes what is new
	c.Reconnect.Base, c.Reconnect.Cap, c.Reconnect.MaxAttempts = 100*time.Millisecond, 5*time.Second, 0
	c.Queue.Size, c.Queue.Wait = 500, 2*time.Minute
	c.Tunnel.Heartbeat = 10 * time.Second
	c.Shutdown.Drain = 30 * time.Second
	return c
}

func lowBandwidth() Config {
	c := Default()
	c.Profile = "low-bandwidth"
	c.Gateway.ConnectTimeout, c.Gateway.Probe = 30*time.Second, 2*time.Minute
	c.Tunnels.Max = 1 // tunnels would compete for what there is
	c.Reconnect.Cap, c.Reconnect.MaxAttempts = time.Minute, 0
	c.Queue.Wait, c.Queue.Release = 2*time.Minute, 10
	c.Tunnel.Window, c.Tunnel.MaxWindow = 32*config.KiB, 128*config.KiB // what is under way of a transfer is what a keystroke waits for
	c.Shutdown.Drain = time.Minute
	return c
}
