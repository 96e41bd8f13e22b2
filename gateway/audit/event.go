// Package audit records who did what, so that it can be shown afterwards: one JSON line for each act, each with the hash of
// the line before it, so that an edited, removed or moved line shows.
package audit

import (
	"time"

	"fairlead/shared/errs"
)

// Action is what was done.
type Action string

// The actions. Their names are part of the log's format.
const (
	Authenticate  Action = "authenticate"  // a token was checked at an upgrade
	Connect       Action = "connect"       // a tunnel was made
	Detach        Action = "detach"        // a tunnel lost its WebSocket, and is held
	Resume        Action = "resume"        // a tunnel came back on a new WebSocket
	Renew         Action = "renew"         // a tunnel took a renewed token
	Disconnect    Action = "disconnect"    // a tunnel ended
	Open          Action = "open"          // a stream was asked for
	Close         Action = "close"         // a stream that had been opened ended
	HostKey       Action = "host_key"      // a backend's host key was trusted on first use, or refused
	Certificate   Action = "certificate"   // a user certificate was signed for a backend
	Breaker       Action = "breaker"       // a circuit opened or closed
	Administer    Action = "administer"    // a request to the admin API that changes something, or was refused
	Revoke        Action = "revoke"        // a revocation was taken, or has ended something
	Configuration Action = "configuration" // the configuration was loaded anew
	Lifecycle     Action = "lifecycle"     // the gateway started, drains, or stopped
	Refusals      Action = "refusals"      // refusals that came too fast to be recorded one by one; Detail says how many
	Losses        Action = "audit_failure" // records were lost because the log could not be written; Detail says how many
)

// Result is how an act ended.
type Result string

// The results.
const (
	Allowed Result = "allowed" // it was permitted and done
	Refused Result = "refused" // it was not permitted
	Failed  Result = "failed"  // it was permitted, and did not work
)

// Event is one act. Empty fields are left out of the line.
type Event struct {
	Action   Action
	Result   Result
	Actor    string        // who did it: a token's subject, an operator's name, "gateway"
	Issuer   string        // of the actor's token
	TokenID  string        // of the actor's token
	Tenant   string        // whose it is
	Pod      string        // the pod that the token was issued for
	Client   string        // network address of the client
	Route    string        // what was asked for
	Backend  string        // where that leads
	Target   string        // what else was acted upon: a path of the admin API, a fingerprint, a tunnel that was ended
	Code     errs.Code     // why it was refused or failed; 0: none
	Detail   string        // one sentence for people
	Sent     uint64        // bytes towards the client
	Received uint64        // bytes from the client
	Duration time.Duration // of what has ended, or of the open
	Tunnel   string        // ids
	Stream   string
	Trace    string
}

// Recorder is what takes events. Record returns when the event is written, or with errs.AuditFailed when it could not be and
// the configuration says that what is not recorded must not happen.
type Recorder interface {
	Record(Event) error
}

// Discard takes events and forgets them.
const Discard discard = 0

type discard int

func (discard) Record(Event) error { return nil }
