package admin

import "time"

// ReplicasView is the replicas that work as one gateway, as the one that answers knows them, and what it does for the others.
type ReplicasView struct {
	Self        string        `json:"self" doc:"id of the replica that answers"`
	Store       StoreView     `json:"store"`
	Replicas    List[Replica] `json:"replicas" doc:"by name; while the store cannot be used, those that were known last"`
	Relays      List[Relay]   `json:"relays" doc:"lanes that came to this replica and that it relays to the owners of their tunnels, oldest first; at most 1000"`
	RelaysTotal int           `json:"relays_total" doc:"how many there are"`
	Leases      LeaseCounts   `json:"leases"`
	Resumes     ResumeCounts  `json:"resumes"`
}

// StoreView is how the store is that replicas share.
type StoreView struct {
	Kind  string    `json:"kind" doc:"memory: nothing is shared; redis"`
	Up    bool      `json:"up" doc:"it can be used, as far as is known"`
	Since time.Time `json:"since,omitzero" doc:"when it became so"`
	Error string    `json:"error,omitempty" doc:"why it cannot be used"`
}

// Replica is one gateway process.
type Replica struct {
	ID       string    `json:"id" doc:"of the process: another one after a restart"`
	Name     string    `json:"name" doc:"of the instance: the same after a restart"`
	Address  string    `json:"address" doc:"host:port of its peer port; empty: it has none"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started,omitzero"`
	Draining bool      `json:"draining" doc:"it takes no new tunnels and is going to stop"`
	Tunnels  int       `json:"tunnels" doc:"that it owns"`
	Streams  int       `json:"streams" doc:"open now"`
	Self     bool      `json:"self" doc:"it is the one that answers"`
}

// Relay is a lane that is copied to the replica that owns its tunnel.
type Relay struct {
	Tunnel   string    `json:"tunnel" doc:"id of the tunnel"`
	Owner    string    `json:"owner" doc:"name of the replica that has the tunnel"`
	Client   string    `json:"client" doc:"the client's network address"`
	Since    time.Time `json:"since"`
	Sent     uint64    `json:"sent" doc:"bytes towards the sidecar"`
	Received uint64    `json:"received" doc:"bytes from the sidecar"`
}

// LeaseCounts are this replica's leases of its tunnels.
type LeaseCounts struct {
	Held int    `json:"held" doc:"tunnels of this replica; while the store cannot be used it does not know all of them"`
	Lost uint64 `json:"lost" doc:"tunnels that other replicas gave up because they could not reach this one (FL-S435), so far"`
}

// ResumeCounts are the resumes that came to this replica so far, by what came of them. Each is counted in one.
type ResumeCounts struct {
	Same    uint64 `json:"same" doc:"this replica has the tunnel"`
	Relayed uint64 `json:"relayed" doc:"another replica has it, and took the lane through this one"`
	Refused uint64 `json:"refused" doc:"not now, or not by this client; the tunnel is not given up"`
	Lost    uint64 `json:"lost" doc:"the tunnel is gone, or was given up because its owner could not be reached"`
}

// DrainPhase is how far a drain is.
type DrainPhase string

// The phases of a drain, in their order.
const (
	Serving   DrainPhase = "serving"   // there is no drain
	Moving    DrainPhase = "moving"    // sidecars open tunnels elsewhere, each at its own moment
	Finishing DrainPhase = "finishing" // all have been asked to; streams that are open may finish
	Ending    DrainPhase = "ending"    // the deadline is over: what is left is cut
	Stopping  DrainPhase = "stopping"  // everything is closed, and the process ends
)

// DrainView is the progress of a drain.
type DrainView struct {
	Draining bool       `json:"draining"`
	Reason   string     `json:"reason" doc:"why it drains; empty while it serves"`
	Since    time.Time  `json:"since,omitzero" doc:"when the drain began"`
	Deadline time.Time  `json:"deadline,omitzero" doc:"when what is left is cut"`
	Tunnels  int        `json:"tunnels" doc:"here now"`
	Streams  int        `json:"streams" doc:"open now"`
	Moved    int        `json:"moved" doc:"tunnels that have left in order since it began"`
	Ended    int        `json:"ended" doc:"streams that were cut at the deadline"`
	Phase    DrainPhase `json:"phase" enum:"serving,moving,finishing,ending,stopping" doc:"moving: sidecars open tunnels elsewhere; finishing: open streams may finish; ending: the deadline is over, what is left is cut"`
}

// ReplicaCounts are the replicas that are known, and what they have together.
type ReplicaCounts struct {
	Known    int `json:"known"`
	Draining int `json:"draining"`
	Tunnels  int `json:"tunnels" doc:"of all together, as they told last"`
	Streams  int `json:"streams" doc:"of all together, as they told last"`
}
