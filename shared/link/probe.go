package link

import "time"

// The probe is a route that every gateway answers itself, without a backend: it returns each byte that it gets, so that
// the path to the gateway can be tried alone. PROTOCOL.md specifies it.
const (
	// ProbeRoute is its name. No configuration can have it: names begin with a letter or a digit.
	ProbeRoute = "_probe"
	// ProbeBytes is how many bytes it returns on one stream.
	ProbeBytes = 64 << 20
	// ProbeTime is how long a stream to it lasts.
	ProbeTime = time.Minute
)

// Told is what a gateway said when a tunnel was made.
type Told struct {
	Version    int           // of the link
	Replica    string        // the gateway's name
	MaxMessage int           // largest message that it accepts, bytes
	Window     int           // initial window of its streams, bytes
	Heartbeat  time.Duration // silence after which it pings
	ResumeTTL  time.Duration // how long it holds a tunnel without a lane
	Idle       time.Duration // after which a tunnel without streams should be ended; 0: never
}

// Told returns what the gateway said when the tunnel was made; at the sidecar only.
func (t *Tunnel) Told() Told {
	w := t.hello
	return Told{Version: int(w.version), Replica: w.replica, MaxMessage: int(w.limits.maxMessage), Window: int(w.limits.window),
		Heartbeat: w.heartbeat, ResumeTTL: w.resumeTTL, Idle: w.idle}
}
