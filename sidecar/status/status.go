// Package status is how a running sidecar describes itself: what GET /api/status and GET /api/history answer. It has no
// code of the features that it describes, so that whoever shows them need not link them. Tags doc and enum are for the
// OpenAPI document.
package status

import "time"

// Status is a snapshot of a sidecar.
type Status struct {
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Profile  string    `json:"profile" doc:"empty: none"`
	State    string    `json:"state" enum:"disconnected,connecting,connected,resuming,draining,failed" doc:"of the best tunnel"`
	Since    time.Time `json:"since" doc:"of that state"`
	Ready    bool      `json:"ready" doc:"a connection would be carried now"`
	NotReady string    `json:"not_ready,omitempty"`

	Tunnels   []Tunnel   `json:"tunnels"`
	Queue     Queue      `json:"queue"`
	Spool     *Spool     `json:"spool" doc:"null: no listener spools"`
	Listeners []Listener `json:"listeners"`
	Quality   string     `json:"quality" enum:"excellent,good,fair,poor,none"`
	RTT       float64    `json:"rtt_ms"`
	Loss      float64    `json:"loss" doc:"share of heartbeats without an answer, 0 to 1"`
	Rates     Rates      `json:"rates"`
	Heartbeat Heartbeat  `json:"heartbeat"`
	Endpoints []Endpoint `json:"endpoints"`
	Shutdown  *Shutdown  `json:"shutdown" doc:"null: the sidecar is not stopping"`
	Events    []Event    `json:"events" doc:"the last 100, oldest first"`
}

// Tunnel is one slot of the pool.
type Tunnel struct {
	Slot     int       `json:"slot"`
	ID       string    `json:"id"`
	Endpoint string    `json:"endpoint"`
	Replica  string    `json:"replica" doc:"the gateway replica that owns the tunnel"`
	Via      string    `json:"via" doc:"the replica whose WebSocket carries it; empty: the same, or it was not told"`
	State    string    `json:"state" enum:"disconnected,connecting,connected,resuming,draining,failed"`
	Since    time.Time `json:"since"`
	RTT      float64   `json:"rtt_ms"`
	Loss     float64   `json:"loss"`
	Quality  string    `json:"quality" enum:"excellent,good,fair,poor,none"`
	Streams  int       `json:"streams"`
	Resumes  uint64    `json:"resumes"`
	Sent     uint64    `json:"bytes_sent"`
	Received uint64    `json:"bytes_received"`
	Replayed uint64    `json:"bytes_replayed"`
	Error    string    `json:"error,omitempty" doc:"of the last attempt, or why the lane was lost"`
}

// Queue is where connections wait for a tunnel.
type Queue struct {
	Length   int     `json:"length"`
	Size     int     `json:"size"`
	Pressure bool    `json:"pressure" doc:"it is so full that accepting is slowed"`
	Waiting  Waiting `json:"waiting"`
	Refused  uint64  `json:"refused" doc:"connections, since the start"`
	Expired  uint64  `json:"expired" doc:"connections that waited too long, since the start"`
}

// Waiting is how many wait of each priority.
type Waiting struct {
	High   int `json:"high"`
	Normal int `json:"normal"`
	Low    int `json:"low"`
}

// Spool is what is on disk and not delivered yet.
type Spool struct {
	Connections int        `json:"connections"`
	Bytes       int64      `json:"bytes"`
	Size        int64      `json:"size" doc:"bytes that it may have"`
	Oldest      *time.Time `json:"oldest" doc:"null when nothing is kept"`
	Delivering  int        `json:"delivering" doc:"connections"`
	Delivered   uint64     `json:"delivered" doc:"connections, since the start"`
	Dropped     uint64     `json:"dropped" doc:"connections, since the start"`
	Quarantined uint64     `json:"quarantined"`
	Error       string     `json:"error,omitempty" doc:"why nothing is taken or delivered"`
}

// Listener is a local address.
type Listener struct {
	Name     string `json:"name"`
	Listen   string `json:"listen"`
	Route    string `json:"route"`
	Priority string `json:"priority" enum:"high,normal,low"`
	Delivery string `json:"delivery" enum:"stream,spool"`
	Active   int    `json:"active"`
	Waiting  int    `json:"waiting"`
	Total    uint64 `json:"total"`
	Failed   uint64 `json:"failed"`
	Sent     uint64 `json:"bytes_sent"`
	Received uint64 `json:"bytes_received"`
}

// Rates are bytes a second, over the last seconds.
type Rates struct {
	Sent     float64 `json:"sent"`
	Received float64 `json:"received"`
}

// Heartbeat is how often a quiet tunnel shows life.
type Heartbeat struct {
	Interval string `json:"interval" doc:"a duration, such as 30s"`
	Learned  bool   `json:"learned"`
	Reason   string `json:"reason,omitempty" doc:"what it was learned from"`
}

// Endpoint is a gateway's URL.
type Endpoint struct {
	URL    string    `json:"url"`
	Weight int       `json:"weight"`
	State  string    `json:"state" enum:"healthy,failing,unknown"`
	Active bool      `json:"active" doc:"a tunnel leads there"`
	Since  time.Time `json:"since"`
	Error  string    `json:"error,omitempty"`
}

// Shutdown is the progress of a stop.
type Shutdown struct {
	Phase       string    `json:"phase" doc:"serving, delivering or closing"`
	Reason      string    `json:"reason"`
	Connections int       `json:"connections" doc:"that are open"`
	SpoolBytes  int64     `json:"spool_bytes" doc:"that are not delivered"`
	Deadline    time.Time `json:"deadline" doc:"of the phase"`
}

// Event is a change of a tunnel's state, or an attempt that failed.
type Event struct {
	Time     time.Time `json:"time"`
	Tunnel   int       `json:"tunnel" doc:"slot"`
	State    string    `json:"state" enum:"disconnected,connecting,connected,resuming,draining,failed"`
	Attempt  int       `json:"attempt,omitempty"`
	DelayMS  int64     `json:"delay_ms,omitempty" doc:"until the next attempt; before the attempt, with state connecting"`
	Endpoint string    `json:"endpoint,omitempty"`
	Code     string    `json:"code,omitempty"`
	Reason   string    `json:"reason"`
}

// Sample is one second of a sidecar's history.
type Sample struct {
	Time        time.Time `json:"time"`
	State       string    `json:"state" enum:"disconnected,connecting,connected,resuming,draining,failed"`
	Sent        float64   `json:"sent" doc:"bytes a second"`
	Received    float64   `json:"received" doc:"bytes a second"`
	RTT         float64   `json:"rtt_ms"`
	Loss        float64   `json:"loss"`
	Connections int       `json:"connections"`
	Queue       int       `json:"queue"`
	SpoolBytes  int64     `json:"spool_bytes"`
}

// Reloaded is what came of reading the configuration anew: keys that have changed.
type Reloaded struct {
	Applied      []string `json:"applied" doc:"in force now"`
	NeedsRestart []string `json:"needs_restart" doc:"not in force before the sidecar is started anew"`
}
