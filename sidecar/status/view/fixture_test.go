package view_test

import (
	"time"

	"fairlead/sidecar/status"
)

// noon is now in all fixtures.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// well is a sidecar without a worry.
func well() *status.Status {
	return &status.Status{
		Instance: "orders-6f5d8-x2k9p", Version: "v1.4.0", Started: ago(75 * time.Hour), Profile: "unstable", State: "connected", Since: ago(133 * time.Minute), Ready: true,
		Tunnels: []status.Tunnel{
			{Slot: 0, ID: "t-81c5", Endpoint: "wss://gateway-a.eu.example.com/", Replica: "fairlead-gateway-7c9d-abcde", State: "connected", Since: ago(133 * time.Minute),
				RTT: 23.4, Loss: 0.004, Quality: "good", Streams: 7, Resumes: 3, Sent: 1 << 30, Received: 412 << 20, Replayed: 1024},
			{Slot: 1, ID: "t-93aa", Endpoint: "wss://gateway-b.eu.example.com/", Replica: "fairlead-gateway-7c9d-fghij", State: "connected", Since: ago(41 * time.Second),
				RTT: 31, Quality: "excellent", Streams: 2, Sent: 31 << 10, Received: 9 << 10},
		},
		Queue: status.Queue{Size: 100},
		Spool: &status.Spool{Size: 1 << 30, Delivered: 412},
		Listeners: []status.Listener{
			{Name: "git", Listen: "127.0.0.1:2222", Route: "git", Priority: "high", Delivery: "stream", Active: 2, Total: 1841, Sent: 200 << 20, Received: 400 << 20},
			{Name: "orders-db", Listen: "127.0.0.1:5432", Route: "orders-db", Priority: "normal", Delivery: "stream", Active: 7, Total: 96, Failed: 1, Sent: 801 << 20, Received: 12 << 20},
			{Name: "ship", Listen: "127.0.0.1:5140", Route: "logs", Priority: "low", Delivery: "spool", Total: 412, Sent: 23 << 20},
		},
		Quality: "good", RTT: 23.4, Loss: 0.004, Rates: status.Rates{Sent: 1.2 * (1 << 20), Received: 310 << 10},
		Heartbeat: status.Heartbeat{Interval: "25s", Learned: true, Reason: "lanes that were quiet for 30s were cut"},
		Endpoints: []status.Endpoint{
			{URL: "wss://gateway-a.eu.example.com/", Weight: 3, State: "healthy", Active: true, Since: ago(75 * time.Hour)},
			{URL: "wss://gateway-b.eu.example.com/", Weight: 1, State: "healthy", Active: true, Since: ago(75 * time.Hour)},
		},
		Events: []status.Event{
			{Time: ago(75 * time.Hour), Tunnel: 0, State: "connecting", Attempt: 1, Endpoint: "wss://gateway-a.eu.example.com/", Reason: "start"},
			{Time: ago(134 * time.Minute), Tunnel: 0, State: "resuming", Attempt: 1, DelayMS: 180, Endpoint: "wss://gateway-a.eu.example.com/", Code: "FL-N105", Reason: "the connection to the gateway broke"},
			{Time: ago(133 * time.Minute), Tunnel: 0, State: "connected", Endpoint: "wss://gateway-a.eu.example.com/", Reason: "resumed"},
			{Time: ago(41 * time.Second), Tunnel: 1, State: "connected", Endpoint: "wss://gateway-b.eu.example.com/", Reason: "opened for load"},
		},
	}
}

// reconnecting has lost its tunnels; connections wait.
func reconnecting() *status.Status {
	st := well()
	st.State, st.Since, st.Ready, st.NotReady = "resuming", ago(12*time.Second), false, "no tunnel is up: FL-N101: dial tcp 10.4.0.7:443: connection refused"
	st.Quality, st.RTT, st.Loss, st.Rates = "", 0, 0, status.Rates{}
	for i := range st.Tunnels {
		st.Tunnels[i].State, st.Tunnels[i].Since, st.Tunnels[i].RTT, st.Tunnels[i].Quality = "resuming", ago(12*time.Second), 0, ""
		st.Tunnels[i].Error = "FL-N101: dial tcp 10.4.0.7:443: connection refused"
	}
	st.Queue = status.Queue{Length: 83, Size: 100, Pressure: true, Waiting: status.Waiting{High: 3, Normal: 60, Low: 20}, Refused: 4, Expired: 1}
	st.Listeners[1].Waiting = 83
	oldest := ago(9 * time.Second)
	st.Spool.Connections, st.Spool.Bytes, st.Spool.Oldest = 3, 1_258_291, &oldest
	st.Endpoints[0].State, st.Endpoints[0].Active, st.Endpoints[0].Error = "failing", false, "connection refused"
	st.Endpoints[1].State, st.Endpoints[1].Active = "unknown", false
	st.Events = append(st.Events,
		status.Event{Time: ago(12 * time.Second), State: "resuming", Attempt: 1, DelayMS: 150, Endpoint: "wss://gateway-a.eu.example.com/", Code: "FL-N105", Reason: "the connection to the gateway broke"},
		status.Event{Time: ago(4 * time.Second), State: "resuming", Attempt: 5, DelayMS: 6400, Endpoint: "wss://gateway-a.eu.example.com/", Code: "FL-N101", Reason: "connection refused"})
	return st
}

// failed has given up.
func failed() *status.Status {
	st := reconnecting()
	st.State, st.Since, st.NotReady = "failed", ago(3*time.Minute), "gave up after 10 attempts"
	st.Queue, st.Spool = status.Queue{Size: 100, Expired: 88}, nil
	st.Tunnels = st.Tunnels[:1]
	st.Tunnels[0].State = "failed"
	st.Events = append(st.Events, status.Event{Time: ago(2 * time.Second), State: "failed", Attempt: 10, Code: "FL-N110", Reason: "gave up after 10 attempts; the last: connection refused"})
	return st
}

// draining stops, and delivers what is in the spool.
func draining() *status.Status {
	st := well()
	st.State, st.Since, st.Ready, st.NotReady = "draining", ago(2*time.Second), false, "the sidecar is stopping"
	oldest := ago(2 * time.Minute)
	st.Spool = &status.Spool{Connections: 5, Bytes: 1_258_291, Size: 1 << 30, Oldest: &oldest, Delivering: 4, Delivered: 412, Dropped: 2, Error: ""}
	st.Shutdown = &status.Shutdown{Phase: "delivering", Reason: "signal_term", Connections: 3, SpoolBytes: 1_258_291, Deadline: noon.Add(8 * time.Second)}
	return st
}
