package config

import (
	"time"

	"fairlead/shared/config"
)

// What happens to acts that cannot be recorded.
const (
	AuditRefuse   = "refuse"   // they are not done
	AuditContinue = "continue" // they are done; that records are missing is said
)

// Whether records are on disk before the act is answered.
const (
	SyncNone     = "none"     // the operating system decides
	SyncInterval = "interval" // within SyncInterval
	SyncAlways   = "always"   // before the answer
)

// Audit is the log of who did what.
type Audit struct {
	// File is where it is written; empty: nowhere.
	File string `koanf:"file" doc:"file that the audit log is written to; empty: nothing is recorded" example:"/var/log/fairlead/audit.jsonl"`
	// MaxSize is how large a file gets before the next is begun.
	MaxSize config.Bytes `koanf:"max_size" min:"16KiB" doc:"size from which on a new file is begun, with the chain kept" example:"256MiB"`
	// MaxFiles is how many full files are kept; 0: all.
	MaxFiles int `koanf:"max_files" min:"0" doc:"full files that are kept, what is dropped is recorded; 0: all" example:"30"`
	// Sync says whether records are on disk before the act is answered.
	Sync string `koanf:"sync" enum:"none|interval|always" doc:"whether records are forced to disk: always before the act is answered, at intervals, or when the operating system likes; they are always written before" example:"always"`
	// SyncInterval is the interval.
	SyncInterval time.Duration `koanf:"sync_interval" min:"10ms" max:"1m" doc:"the interval of sync: interval" example:"200ms"`
	// SignKeyFile is an Ed25519 private key that heads of the chain are signed with; empty: none are.
	SignKeyFile string `koanf:"sign_key_file" doc:"Ed25519 private key that heads of the chain are signed with; empty: none are" example:"/etc/fairlead/audit-key.pem"`
	// SignRecords is after how many records a head is signed.
	SignRecords int `koanf:"sign_records" min:"1" doc:"records after which a head is signed" example:"100"`
	// SignInterval is the time after which a head is signed, if there is anything new.
	SignInterval time.Duration `koanf:"sign_interval" min:"1s" max:"24h" doc:"time after which a head is signed, if there is anything new" example:"10s"`
	// OnFailure is what happens to acts that cannot be recorded.
	OnFailure string `koanf:"on_failure" enum:"refuse|continue" doc:"what happens while records cannot be written: acts are refused, or done without a record, which is then said" example:"continue"`
	// Timeout is how long an act waits for a disk that hangs.
	Timeout time.Duration `koanf:"timeout" min:"100ms" max:"1m" doc:"how long an act waits for a disk that hangs before that counts as a failure" example:"1s"`
}

func defaultAudit() Audit {
	return Audit{MaxSize: 100 << 20, Sync: SyncInterval, SyncInterval: time.Second, SignRecords: 1000, SignInterval: time.Minute, OnFailure: AuditRefuse, Timeout: 5 * time.Second}
}
