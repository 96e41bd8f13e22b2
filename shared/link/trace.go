package link

import (
	"crypto/rand"
	"encoding/hex"
)

// NewTrace makes a trace context for OpenRequest.Trace, in the format of W3C Trace Context level 1, section 3.2:
// version, trace id, parent id and the flag "sampled". It joins the log lines of both programs about one stream.
func NewTrace() string {
	var id [24]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	return "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-01"
}

// TraceID is the trace id of a trace context; empty when it holds none. A peer's context may be anything.
func TraceID(trace string) string {
	const start, end = 3, 3 + 32
	if len(trace) < end+1 || trace[end] != '-' {
		return ""
	}
	if _, err := hex.DecodeString(trace[start:end]); err != nil {
		return ""
	}
	return trace[start:end]
}
