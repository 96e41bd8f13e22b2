package admin

import (
	"encoding/json"
	"time"

	"fairlead/shared/config"
)

// List is a list that is told as [] and never as null.
type List[T any] []T

// MarshalJSON implements json.Marshaler.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}

// Done is the answer to what has no other.
type Done struct{}

// Setting is one value of the effective configuration.
type Setting = config.Entry

// Tunnel is one tunnel.
type Tunnel struct {
	ID           string    `json:"id"`
	Tenant       string    `json:"tenant"`
	Subject      string    `json:"subject" doc:"of its token"`
	Issuer       string    `json:"issuer" doc:"of its token"`
	TokenID      string    `json:"token_id" doc:"of its token; empty: it has none"`
	Tier         string    `json:"tier"`
	Pod          string    `json:"pod" doc:"that its token was issued for; empty: not known"`
	Peer         string    `json:"peer" doc:"the client's network address"`
	Instance     string    `json:"instance" doc:"the gateway that has it"`
	Replica      string    `json:"replica" doc:"name of its owner: the replica that answers"`
	Via          string    `json:"via" doc:"name of the replica through which its lane comes now; empty: it comes directly"`
	State        string    `json:"state" enum:"connected,detached" doc:"detached: it lost its WebSocket and waits to be resumed"`
	Since        time.Time `json:"since"`
	Expires      time.Time `json:"token_expires" doc:"when it ends unless its token is renewed"`
	Streams      int       `json:"streams" doc:"open now"`
	Opened       uint64    `json:"opened" doc:"streams so far"`
	Sent         uint64    `json:"bytes_sent" doc:"towards the sidecar"`
	Received     uint64    `json:"bytes_received" doc:"from the sidecar"`
	SentRate     float64   `json:"sent_rate" doc:"bytes per second, lately"`
	ReceivedRate float64   `json:"received_rate" doc:"bytes per second, lately"`
	Replayed     uint64    `json:"bytes_replayed" doc:"sent again after a resume"`
	Retained     int64     `json:"retained" doc:"bytes held for it beyond its streams' initial windows"`
	Resumes      uint64    `json:"resumes"`
	RTT          float64   `json:"rtt_ms" doc:"round trip; 0 until it is measured"`
}

// Stream is one stream: of a tunnel, or a plain one.
type Stream struct {
	Tunnel       string    `json:"tunnel" doc:"its tunnel; plain for a plain stream"`
	ID           string    `json:"id" doc:"unique within its tunnel"`
	Tenant       string    `json:"tenant"`
	Subject      string    `json:"subject" doc:"of its token"`
	Pod          string    `json:"pod" doc:"that its token was issued for; empty: not known"`
	Route        string    `json:"route"`
	Backend      string    `json:"backend"`
	Mode         string    `json:"mode" doc:"passthrough or forward"`
	Target       string    `json:"target,omitempty" doc:"what the backend connects to, in mode forward"`
	Priority     string    `json:"priority" doc:"high, normal or low"`
	App          string    `json:"app" doc:"the application's address at its sidecar; empty for a plain stream"`
	Client       string    `json:"client" doc:"the network address that it came from"`
	Instance     string    `json:"instance" doc:"the gateway that has it"`
	Since        time.Time `json:"since"`
	Opening      float64   `json:"open_ms" doc:"how long it took to connect"`
	Sent         uint64    `json:"sent" doc:"bytes towards the client"`
	Received     uint64    `json:"received" doc:"bytes from the client"`
	SentRate     float64   `json:"sent_rate" doc:"bytes per second, lately"`
	ReceivedRate float64   `json:"received_rate" doc:"bytes per second, lately"`
}

// Tenant is what one tenant has and may have at this gateway.
type Tenant struct {
	Tenant       string    `json:"tenant"`
	Tier         string    `json:"tier"`
	Tunnels      int       `json:"tunnels" doc:"now"`
	Streams      int       `json:"streams" doc:"now"`
	Waiting      int       `json:"waiting" doc:"opens that wait for a backend"`
	Opens        uint64    `json:"opens" doc:"so far"`
	Refused      uint64    `json:"refused" doc:"opens and tunnels that were refused so far"`
	Sent         uint64    `json:"bytes_sent" doc:"towards its clients"`
	Received     uint64    `json:"bytes_received" doc:"from its clients"`
	SentRate     float64   `json:"sent_rate" doc:"bytes per second, lately"`
	ReceivedRate float64   `json:"received_rate" doc:"bytes per second, lately"`
	Retained     int64     `json:"retained" doc:"bytes held for it"`
	Limits       Allowance `json:"limits" doc:"what its tier allows; 0: no limit"`
	Left         Allowance `json:"left" doc:"what is left of it now; -1: no limit"`
}

// Allowance is the limits of a tier, or what is left of them.
type Allowance struct {
	Opens     int   `json:"opens" doc:"opens: per minute; what is left: at once"`
	Burst     int   `json:"burst" doc:"opens at once after a pause"`
	Tunnels   int   `json:"tunnels"`
	Streams   int   `json:"streams"`
	Bandwidth int64 `json:"bandwidth" doc:"bytes per second"`
}

// Revocation is something that no token may claim any more.
type Revocation struct {
	ID           string    `json:"id"`
	TokenID      string    `json:"token_id,omitempty" doc:"tokens with this id"`
	Subject      string    `json:"subject,omitempty" doc:"tokens of this subject"`
	Tenant       string    `json:"tenant,omitempty" doc:"tokens of this tenant"`
	Issuer       string    `json:"issuer,omitempty" doc:"only those of this issuer"`
	IssuedBefore time.Time `json:"issued_before,omitzero" doc:"only those that were issued before"`
	Reason       string    `json:"reason,omitempty"`
	By           string    `json:"by" doc:"who revoked"`
	Since        time.Time `json:"since" doc:"when it was revoked"`
	Expires      time.Time `json:"expires" doc:"when it is forgotten"`
	Ended        int       `json:"ended,omitempty" doc:"tunnels and streams that it has ended at this gateway; only in the answer to who revokes"`
	Unsaved      bool      `json:"unsaved,omitempty" doc:"it is in force, but could not be written to revocations.file: a restart forgets it"`
}

// Decision is how the policy answers.
type Decision struct {
	Allowed bool         `json:"allowed"`
	Rule    int          `json:"rule" doc:"index of the rule that allows it, from 0; -1: none does"`
	Tenants string       `json:"tenants" doc:"the rule's pattern that fits the tenant"`
	Route   string       `json:"route" doc:"the rule's route that fits"`
	Reason  string       `json:"reason"`
	Near    List[string] `json:"near" doc:"rules that fit one of both but not the other; only where nothing allows it"`
}

// ReloadResult is what a reload of the configuration came to. It is applied whole or not at all.
type ReloadResult struct {
	Applied List[string] `json:"applied" doc:"keys that have changed and are in force"`
	Restart List[string] `json:"needs_restart" doc:"keys that have changed and count after a restart"`
	Files   List[string] `json:"files" doc:"keys whose files have changed and were read anew"`
	Ended   int          `json:"ended" doc:"streams and tunnels that are not allowed any more, and were ended"`
}

// LogLevel is how much is logged.
type LogLevel struct {
	Level string `json:"level" enum:"error,warn,info,debug,trace" required:"true"`
}
