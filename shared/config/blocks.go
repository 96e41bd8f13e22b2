package config

import "time"

// Log is the keys of the log, the same in both programs.
type Log struct {
	// Level is the least important level that is logged.
	Level string `koanf:"level" enum:"error|warn|info|debug|trace" doc:"least important level that is logged; can be changed at run time" example:"debug"`
	// Format is how lines are written.
	Format string `koanf:"format" enum:"json|text|auto" doc:"how lines are written; auto is text at a terminal and JSON elsewhere" example:"text"`
}

// DefaultLog is the defaults of Log.
func DefaultLog() Log { return Log{Level: "info", Format: "json"} }

// Link is the keys of a tunnel that both of its ends have. Where the ends differ, the smaller value counts.
type Link struct {
	// Heartbeat is the time between pings on a quiet WebSocket. More than 30 s would notice a dead link too late.
	Heartbeat time.Duration `koanf:"heartbeat" min:"1s" max:"30s" doc:"time between pings on a quiet WebSocket" example:"15s"`
	// Idle is how long a tunnel without streams stays open; 0 keeps it.
	Idle time.Duration `koanf:"idle" doc:"how long a tunnel without streams stays open, unless the sidecar's pool wants it; 0s: for ever" example:"10m"`
	// MaxMessage is the size of the largest WebSocket message that is accepted.
	MaxMessage Bytes `koanf:"max_message" min:"64KiB" max:"1MiB" doc:"largest WebSocket message that is accepted; a larger one ends the WebSocket with code 1009" example:"512KiB"`
	// Window is how much a new stream may send before it hears from the other side.
	Window Bytes `koanf:"window" min:"16KiB" max:"1GiB" doc:"how much a new stream may send before it hears from the other side" example:"512KiB"`
	// MaxWindow is how far a stream's window grows with bandwidth and round trip.
	MaxWindow Bytes `koanf:"max_window" min:"16KiB" max:"1GiB" allowed:"at least window" doc:"how far a stream's window grows with bandwidth and round trip" example:"64MiB"`
	// Memory bounds the bytes that one tunnel holds for its streams in each direction.
	Memory Bytes `koanf:"memory" min:"1MiB" allowed:"at least max_window" doc:"bound of the bytes that one tunnel holds for its streams" example:"128MiB"`
}

// DefaultLink is the defaults of Link.
func DefaultLink() Link {
	return Link{Heartbeat: 30 * time.Second, Idle: 5 * time.Minute, MaxMessage: MiB,
		Window: 256 * KiB, MaxWindow: 16 * MiB, Memory: 64 * MiB}
}

// Validate adds the problems between the keys; prefix is the key that the block is under.
func (l Link) Validate(c *Check, prefix string) {
	if l.MaxWindow < l.Window {
		c.Refuse(prefix+".max_window", "allowed: at least window, which is %s", l.Window)
	}
	if l.Memory < l.MaxWindow {
		c.Refuse(prefix+".memory", "allowed: at least max_window, which is %s", l.MaxWindow)
	}
}
