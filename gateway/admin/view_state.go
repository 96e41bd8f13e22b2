package admin

import "time"

// Diagnostics is how the gateway is.
type Diagnostics struct {
	Instance    string             `json:"instance"`
	Version     string             `json:"version"`
	Started     time.Time          `json:"started"`
	State       string             `json:"state" enum:"serving,draining"`
	Tunnels     int                `json:"tunnels"`
	Detached    int                `json:"tunnels_detached" doc:"tunnels that lost their WebSocket and wait to be resumed"`
	Streams     int                `json:"streams"`
	Store       string             `json:"store" doc:"where shared state is kept"`
	StoreUp     bool               `json:"store_up" doc:"the store can be used, as far as is known"`
	StoreSince  time.Time          `json:"store_since,omitzero" doc:"when that became so"`
	StoreError  string             `json:"store_error,omitempty" doc:"why the store cannot be used now"`
	Replicas    ReplicaCounts      `json:"replicas" doc:"that are known"`
	Issuers     List[IssuerStatus] `json:"issuers"`
	Audit       AuditStatus        `json:"audit"`
	Pressure    Pressure           `json:"pressure"`
	Limits      LimitStatus        `json:"limits"`
	Revocations int                `json:"revocations" doc:"in force"`
	Process     Process            `json:"process"`
	Backends    List[Backend]      `json:"backends"`
}

// IssuerStatus is what the gateway has of an issuer's keys.
type IssuerStatus struct {
	Issuer  string    `json:"issuer"`
	Source  string    `json:"source" doc:"where its keys come from"`
	Keys    int       `json:"keys" doc:"how many are known"`
	Fetched time.Time `json:"fetched,omitzero" doc:"when they were read last"`
	Error   string    `json:"error,omitempty" doc:"why they could not be read since then"`
	Review  string    `json:"review_error,omitempty" doc:"why the cluster could not be asked about tokens"`
}

// AuditStatus is how the audit log is.
type AuditStatus struct {
	Enabled   bool      `json:"enabled"`
	File      string    `json:"file,omitempty"`
	OnFailure string    `json:"on_failure,omitempty" doc:"what happens when it cannot be written"`
	Sequence  uint64    `json:"sequence" doc:"number of the last line"`
	Lost      uint64    `json:"lost" doc:"records that could not be written"`
	Failing   bool      `json:"failing" doc:"the last record could not be written"`
	Error     string    `json:"error,omitempty" doc:"why not"`
	Signed    time.Time `json:"signed,omitzero" doc:"when the head was signed last"`
}

// Pressure is how short of memory and CPU the gateway is.
type Pressure struct {
	Level    int    `json:"level" min:"0" max:"3" doc:"0, at ease, to 3"`
	Shedding string `json:"shedding" enum:"none,low,normal,all" doc:"new opens of this priority and below are refused"`
	Retained int64  `json:"retained_bytes" doc:"held for all tunnels beyond their streams' initial windows"`
}

// LimitStatus is what the limits keep track of.
type LimitStatus struct {
	Tenants int `json:"tenants" doc:"tenants that are counted"`
	Tiers   int `json:"tiers" doc:"tiers that are configured"`
}

// Process is the process that the gateway is.
type Process struct {
	PID        int     `json:"pid"`
	GoVersion  string  `json:"go_version"`
	Uptime     float64 `json:"uptime_s"`
	Goroutines int     `json:"goroutines"`
	Heap       uint64  `json:"heap_bytes" doc:"live objects and garbage that is not collected yet"`
	Memory     uint64  `json:"memory_bytes" doc:"mapped by the Go runtime"`
	GCs        uint64  `json:"gc_cycles"`
	MaxProcs   int     `json:"max_procs" doc:"threads that run Go code at once"`
}

// Backend is one backend.
type Backend struct {
	Name        string     `json:"name"`
	Address     string     `json:"address"`
	Breaker     string     `json:"breaker" enum:"closed,open,half-open" doc:"what the circuit does with the next call"`
	Mode        string     `json:"mode" enum:"auto,open,closed" doc:"auto, or what an operator has decided"`
	ChangedBy   string     `json:"changed_by,omitempty" doc:"who changed the circuit last: a caller's name, or breaker"`
	Failures    int        `json:"failures" doc:"in a row"`
	LastFailure string     `json:"last_failure,omitempty" doc:"the last one that counted against the backend"`
	FailedAt    time.Time  `json:"last_failure_at,omitzero"`
	RetryAt     time.Time  `json:"retry_at,omitzero" doc:"when the circuit lets a probe through"`
	Up          *bool      `json:"up,omitempty" doc:"what the last health check found; not given without checks"`
	HealthError string     `json:"health_error,omitempty" doc:"why it is not up"`
	Streams     int        `json:"streams" doc:"open now"`
	Waiting     int        `json:"waiting" doc:"opens that wait for a turn"`
	Dialing     int        `json:"dialing" doc:"connections being made"`
	Pools       List[Pool] `json:"pools" doc:"a tenant each; none for passthrough"`
}

// Pool is one tenant's SSH connections to one backend.
type Pool struct {
	Tenant      string           `json:"tenant"`
	KeyID       string           `json:"key_id,omitempty" doc:"in the certificates of its connections"`
	Connections List[Connection] `json:"connections" doc:"oldest first"`
	Dialing     int              `json:"dialing" doc:"connections being made"`
	Channels    int              `json:"channels" doc:"open, or about to be"`
	Waiting     int              `json:"waiting" doc:"for a channel"`
	Reused      uint64           `json:"reused" doc:"channels opened on a connection that had carried one before"`
}

// Connection is one SSH connection.
type Connection struct {
	ID       string `json:"id" doc:"the gateway's own TCP address, by which the backend's log knows it"`
	Server   string `json:"server" doc:"version line"`
	AgeMS    int64  `json:"age_ms"`
	Channels int    `json:"channels"`
	Opened   uint64 `json:"opened" doc:"channels so far"`
	Retired  bool   `json:"retired" doc:"it gives no new channels"`
}
