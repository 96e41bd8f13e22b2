// Package store is the state that the replicas of a gateway share: who owns which tunnel, what tenants have used of their
// limits, which circuits are open, who is locked out, and which host keys were seen first. Memory keeps it in the process, for
// a single gateway; Redis shares it. Both pass the same contract test.
//
// It is an optimisation of truth, not a dependency of traffic: every caller has an answer of its own for when the store has
// none, and knows the difference, because a store that cannot be asked says so (errs.StoreUnavailable) and never that something
// is not there.
package store

import (
	"context"
	"time"

	"fairlead/shared/errs"
)

// Store is what replicas share. Its methods are safe for concurrent use and bounded by their contexts and by the store's own
// timeouts. Their only errors are errs.StoreUnavailable, and errs.Canceled when ctx ends first. Strings may be anything that
// is valid UTF-8, of any length, and are told apart byte by byte.
type Store interface {
	Replicas
	Tunnels
	Limits
	Circuits
	Revocations
	HostKeys

	// Watch tells of changes that other replicas have made, and its own, until ctx ends or the store is closed; then it
	// returns nil. It is best effort: who must know everything asks at intervals too, and when told Missed. tell is called
	// by one goroutine at a time, and must not block.
	Watch(ctx context.Context, tell func(Event)) error

	// Incarnation names what the store holds. It is another one once the store has lost everything (it was flushed, or it
	// started anew): whoever has put something there that is to last puts it there again.
	Incarnation(ctx context.Context) (string, error)

	// Health is whether the store can be used, as far as is known.
	Health() Health

	Close() error
}

// Health of a store.
type Health struct {
	Up    bool
	Since time.Time // when it became so
	Error string    // why it is not up; no secrets
}

// Event tells of a change.
type Event struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"` // of what has changed: a backend, a revocation, a tunnel
}

// Kind of an Event.
type Kind string

// The kinds of events.
const (
	CircuitChanged    Kind = "circuit"
	RevocationChanged Kind = "revocation"
	TunnelFenced      Kind = "fenced"
	ReplicaChanged    Kind = "replica" // one came, drains, or left in order
	Missed            Kind = "missed"  // of anything something may have changed, and has not been told; without a name
)

// Replica is a gateway process.
type Replica struct {
	ID       string    `json:"id"`      // of the process: another one after a restart
	Name     string    `json:"name"`    // the instance's, the same after a restart
	Address  string    `json:"address"` // host:port of its peer port; empty: it has none
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Draining bool      `json:"draining"`
	Tunnels  int       `json:"tunnels"`
	Streams  int       `json:"streams"`
}

// Replicas is the directory of gateway processes.
type Replicas interface {
	// Announce enters or refreshes a replica, for as long as ttl.
	Announce(ctx context.Context, r Replica, ttl time.Duration) error
	// Withdraw removes it.
	Withdraw(ctx context.Context, id string) error
	// Replicas lists those that are entered, by name.
	Replicas(ctx context.Context) ([]Replica, error)
}

// Tunnel is the record of who owns a tunnel. The owner is the replica that has made it; a tunnel never changes hands. Its
// record is held, by leases, until it is lost: ended by its owner, or fenced by a replica that could not find the owner. What
// is lost stays lost.
type Tunnel struct {
	ID      string    `json:"id"`      // link.ID in hexadecimal
	Owner   string    `json:"owner"`   // Replica.ID
	Name    string    `json:"name"`    // Replica.Name of the owner
	Address string    `json:"address"` // Replica.Address of the owner
	Epoch   uint64    `json:"epoch"`   // of its last lane: grows with each
	Tenant  string    `json:"tenant"`
	Subject string    `json:"subject"`
	Issuer  string    `json:"issuer"`
	Made    time.Time `json:"made"`
	Streams int       `json:"streams"` // as of the last refresh
	Lost    *Ending   `json:"lost,omitempty"`
}

// Ending is why a tunnel is lost.
type Ending struct {
	Code   errs.Code `json:"code"`
	Reason string    `json:"reason"` // for people
	By     string    `json:"by"`     // Replica.Name
	At     time.Time `json:"at"`
}

// Tunnels are the owners' leases.
type Tunnels interface {
	// Hold makes or refreshes records, each for as long as ttl; Lost of them is not looked at. A record is refused that
	// is lost, has another owner, or a higher epoch than is given; what is refused is returned as the store has it, the others
	// are held when Hold returns.
	Hold(ctx context.Context, ttl time.Duration, tunnels ...Tunnel) (refused []Tunnel, err error)
	// Find returns a record, lost ones too.
	Find(ctx context.Context, id string) (t Tunnel, ok bool, err error)
	// Fence marks a record as lost, for as long as ttl, unless it is lost already, is not there, or has another epoch than
	// seen, the one that was found. It returns the record as it is then, and whether it was fenced by this call. Its
	// owner, when it lives, learns of it by the next Hold, or by Watch.
	Fence(ctx context.Context, id string, seen uint64, why Ending, ttl time.Duration) (t Tunnel, fenced bool, err error)
	// End marks the owner's own records as lost, with what their Lost says, for as long as ttl, also if they are not there; those
	// that are lost already, or another's, are left alone.
	End(ctx context.Context, ttl time.Duration, tunnels ...Tunnel) error
}

// Kinds of slots.
const (
	StreamSlots = "streams"
	TunnelSlots = "tunnels"
)

// Slot is one of what a tenant may have so many of.
type Slot struct {
	Tenant string
	Kind   string // StreamSlots or TunnelSlots
	ID     string // unique among all replicas
}

// Rate is a tier's rate of opens.
type Rate struct {
	Tier      string
	PerMinute int // 0: no limit
	Burst     int // at least 1 with PerMinute
}

// Ask is a wish for a slot, and with Rate for an open.
type Ask struct {
	Slot
	Limit int // slots that the tenant may hold at all replicas together; 0: no limit
	Rate  Rate
	Lease time.Duration // after which the slot is free again unless it is renewed
}

// Grant is the answer.
type Grant struct {
	Granted   bool
	Full      bool          // not granted because Limit is reached; else it was the rate
	Held      int           // slots that the tenant holds at all replicas
	Remaining int           // opens that the rate grants at once after this one
	Wait      time.Duration // until the rate grants one more
	Reset     time.Duration // until the rate is whole again
}

// Limits are what tenants have used at all replicas together. A tenant's rate has one bucket for each tier that its opens
// have named: an open is granted by that of its own tier, and counts in all of them (as in package limit, of which this is
// the shared form; the algorithm is GCRA).
type Limits interface {
	// Take grants or refuses in one atomic step; a refusal takes nothing. It is not repeated when its answer is lost: what it
	// took then comes back with Return, or by itself. A slot that is held already is renewed, whatever the limit.
	Take(ctx context.Context, ask Ask) (Grant, error)
	// Return frees slots.
	Return(ctx context.Context, slots ...Slot) error
	// Renew holds slots for another lease, and takes those that the store has forgotten, whatever the limit.
	Renew(ctx context.Context, lease time.Duration, slots ...Slot) error
	// Held counts what a tenant holds at all replicas.
	Held(ctx context.Context, tenant string) (tunnels, streams int, err error)
}

// Circuit is what replicas tell each other about the breaker of a backend.
type Circuit struct {
	Backend  string    `json:"backend"`
	Open     bool      `json:"open"`
	Mode     string    `json:"mode"` // what an operator decided; empty: nothing
	By       string    `json:"by"`   // Replica.Name, or who decided
	Since    time.Time `json:"since"`
	Retry    time.Time `json:"retry"` // when a probe may be made
	Failures int       `json:"failures"`
	Code     errs.Code `json:"code"`    // of the last failure
	Changed  time.Time `json:"changed"` // by the clock of who put it
	Version  uint64    `json:"version"` // orders changes without clocks; under 2^53
}

// Circuits are the breakers' states.
type Circuits interface {
	// PutCircuit replaces what is known of a backend's, for as long as ttl; the last one counts.
	PutCircuit(ctx context.Context, c Circuit, ttl time.Duration) error
	// Circuits lists all.
	Circuits(ctx context.Context) ([]Circuit, error)
	// ClaimProbe makes one replica the only one to probe a backend, until ttl is over or it is released. Who has the claim
	// may claim again, which prolongs it.
	ClaimProbe(ctx context.Context, backend, by string, ttl time.Duration) (claimed bool, err error)
	// ReleaseProbe ends the claim of who has it.
	ReleaseProbe(ctx context.Context, backend, by string) error
}

// Revocation locks somebody out, until it expires.
type Revocation struct {
	ID      string    `json:"id"`
	Until   time.Time `json:"until"`
	Removed bool      `json:"removed"` // lifted before its time
	Data    []byte    `json:"data"`    // what it says, in the words of who put it; at most 4 KiB
}

// MaxRevocations is how many revocations a store holds. More are refused, with errs.StoreUnavailable.
const MaxRevocations = 10_000

// Revocations are those of all replicas.
type Revocations interface {
	// PutRevocations adds or replaces; one that was removed stays so, and is replaced only by one that is removed too. Those
	// that have expired are left out. There are at most MaxRevocations.
	PutRevocations(ctx context.Context, list ...Revocation) error
	// Revocations lists those that have not expired, removed ones too, and names what it has listed. When nothing has changed since
	// known, list is nil and version is known.
	Revocations(ctx context.Context, known string) (list []Revocation, version string, err error)
}

// HostKeys are those of first use.
type HostKeys interface {
	// PinHostKey stores key (one line, as in authorized_keys) for a backend's address unless there is one already, in one
	// atomic step, and returns the one that is stored now. It is kept as long as somebody asks for it within 90 days.
	PinHostKey(ctx context.Context, address, key string) (pinned string, err error)
}
