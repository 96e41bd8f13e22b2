package config

import (
	"time"

	"fairlead/shared/config"
)

// Tier is a set of limits. 0 is no limit.
type Tier struct {
	// OpensPerMinute is how many streams a tenant may open in a minute; 0: no limit.
	OpensPerMinute int `koanf:"opens_per_minute" doc:"streams that a tenant may open in a minute; 0: no limit" example:"600"`
	// Burst is how many of them at once; 0: no limit of its own.
	Burst int `koanf:"burst" doc:"how many of them at once; 0: no limit but opens_per_minute" example:"200"`
	// Tunnels is how many tunnels a tenant may have; 0: no limit.
	Tunnels int `koanf:"tunnels" doc:"tunnels that a tenant may have; 0: no limit" example:"10"`
	// Streams is how many streams a tenant may have; 0: no limit.
	Streams int `koanf:"streams" doc:"streams that a tenant may have; 0: no limit" example:"1000"`
	// Bandwidth is in bytes per second; 0: no limit.
	Bandwidth config.Bytes `koanf:"bandwidth" doc:"bytes per second that a tenant's streams together may carry, in each direction; they share it evenly. 0: no limit" example:"50MiB"`
	// Memory bounds what the tunnels of a tenant retain together beyond their initial windows; 0: tunnel.memory for each.
	Memory config.Bytes `koanf:"memory" doc:"bytes that the tunnels of a tenant together may retain beyond their streams' initial windows; 0: no limit but tunnel.memory" example:"256MiB"`
}

// SetDefaults sets what a tier that does not say otherwise has.
func (t *Tier) SetDefaults() {
	*t = Tier{OpensPerMinute: 100, Burst: 100, Tunnels: 3, Streams: 100}
}

// DefaultTier is the name of the tier that always exists.
const DefaultTier = "default"

// Limits are those that are not a tier's.
type Limits struct {
	// HandshakesPerMinute bounds the handshakes of one client address; 0: no limit.
	HandshakesPerMinute int `koanf:"handshakes_per_minute" min:"0" doc:"upgrades that one client address (IPv6: one /64) may ask for in a minute; 0: no limit" example:"600"`
	// HandshakeBurst is how many of them may come at once; 0: as many as in a minute.
	HandshakeBurst int `koanf:"handshake_burst" min:"0" doc:"how many of them at once; 0: as many as in a minute" example:"200"`
	// Unauthenticated bounds the connections whose token is not verified yet.
	Unauthenticated int `koanf:"unauthenticated" min:"0" doc:"connections at once whose token is not verified yet; 0: no limit" example:"2000"`
	// UnauthenticatedPerAddress bounds those of one client address.
	UnauthenticatedPerAddress int `koanf:"unauthenticated_per_address" min:"0" doc:"connections at once of one network address whose token is not verified yet, unless it is in trusted_proxies; 0: no limit" example:"200"`
	// Exempt is who has no limits.
	Exempt []Exemption `koanf:"exempt" doc:"who has no limits"`
	// Shedding refuses opens while the process is short of memory or CPU.
	Shedding Shedding `koanf:"shedding" doc:"refusing opens while the process is short of memory or CPU: low priority first, never what is open"`
}

// Exemption lifts limits of some tenants and addresses.
type Exemption struct {
	// Tenants are globs, as in policy.
	Tenants []string `koanf:"tenants" allowed:"this or addresses" doc:"tenants as globs: *, ? and [a-z] match inside one part between slashes" example:"monitoring/*"`
	// Addresses are networks.
	Addresses []string `koanf:"addresses" allowed:"CIDRs" doc:"networks of clients; for the limits that count before a token is known" example:"10.1.0.0/16"`
	// Limits are the limits that are lifted; empty: all.
	Limits []string `koanf:"limits" enum:"opens|tunnels|streams|bandwidth|shedding|handshakes|unauthenticated" doc:"limits that are lifted; empty: all" example:"opens,shedding"`
}

// Shedding is when opens are refused for want of memory or CPU.
type Shedding struct {
	// Enabled switches it on.
	Enabled bool `koanf:"enabled" doc:"refuse opens while the process is short of memory or CPU" example:"false"`
	// Memory is the part of the memory limit, in per cent, from which opens of low priority are refused.
	Memory int `koanf:"memory" min:"10" max:"100" doc:"per cent of the memory limit (GOMEMLIMIT, cgroup) in use from which opens of low priority are refused; half way from there to the limit those of normal priority too, at three quarters all, and new tunnels" example:"75"`
	// Latency is the scheduling latency from which opens of low priority are refused.
	Latency time.Duration `koanf:"latency" min:"1ms" max:"10s" doc:"how long runnable work waits for a CPU (99th percentile, three seconds in a row) from which opens of low priority are refused; at three times that those of normal priority too, at ten times all, and new tunnels" example:"50ms"`
}

func defaultLimits() Limits {
	return Limits{HandshakesPerMinute: 6000, HandshakeBurst: 3000, Unauthenticated: 4096, UnauthenticatedPerAddress: 1024,
		Shedding: Shedding{Enabled: true, Memory: 85, Latency: 100 * time.Millisecond}}
}

// Opens is how long an open may take.
type Opens struct {
	// Timeout is after which an open that was not served fails.
	Timeout time.Duration `koanf:"timeout" min:"1s" max:"10m" doc:"how long an open may wait for a turn and for the backend" example:"10s"`
	// Slow is from when on an open or a dial counts as slow.
	Slow time.Duration `koanf:"slow" min:"1ms" doc:"from when on an open or a dial is counted and logged as slow" example:"1s"`
}

// Revocations is how tokens, subjects and tenants are locked out.
type Revocations struct {
	// File keeps them over a restart; empty: they are forgotten.
	File string `koanf:"file" doc:"file in which revocations are kept over a restart; empty: they end with the process" example:"/var/lib/fairlead/revocations.json"`
	// Review is how often the tokens of open tunnels are checked again.
	Review time.Duration `koanf:"review" min:"1s" max:"5m" doc:"how often the tokens of what is open are checked against revocations that have come by another way, and against the cluster where token_review is on" example:"2s"`
}

// Metrics bounds what is measured.
type Metrics struct {
	// Tenants is how many tenants have metrics of their own.
	Tenants int `koanf:"tenants" min:"1" max:"10000" doc:"tenants with metrics of their own; those that come later share the label other" example:"1000"`
}

// Reload is how changes of files are noticed.
type Reload struct {
	// Watch is how often the configuration file and the files it names are looked at; 0: never.
	Watch time.Duration `koanf:"watch" max:"1h" doc:"how often the configuration file, and what it names, is looked at for changes, by content; 0s: never" example:"30s"`
}
