package audit

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"fairlead/shared/errs"
)

// Kinds of damage that Verify names.
const (
	Edited       = "edited"        // a line is not what was written
	Removed      = "removed"       // lines are missing before this one
	Inserted     = "inserted"      // a line does not belong here
	Reordered    = "reordered"     // a line belongs elsewhere
	Torn         = "torn"          // a line has no end, and no gateway has declared that
	BadSignature = "bad signature" // a head was not signed by a known key
	Unsigned     = "unsigned"      // heads are missing where they were promised
	Truncated    = "truncated"     // the log does not contain a head that is known from elsewhere
)

// Damage is where a log does not verify, and why.
type Damage struct {
	File string // "": the log as a whole
	Line int    // from 1
	Seq  uint64 // that the line has or should have
	Kind string
	Text string // a sentence for people
}

// Error is one line.
func (d *Damage) Error() string {
	if d.File == "" {
		return d.Kind + ": " + d.Text
	}
	return fmt.Sprintf("%s line %d (seq %d): %s: %s", d.File, d.Line, d.Seq, d.Kind, d.Text)
}

// VerifyConfig is what a log is held against.
type VerifyConfig struct {
	Keys        []ed25519.PublicKey // who may have signed heads; none: signatures are not checked
	Heads       []Head              // that the log must contain, as kept elsewhere; Time is not compared
	MaxUnsigned int                 // lines that may follow the last signed head; 0: as many as the log itself promises
	Partial     bool                // what comes before the first source is not there, and need not be
	Visit       func(*Line, []byte) error
	// Visit gets each line, with its bytes, once the next one has confirmed it; not those that were torn. The bytes are
	// valid until it returns. An error ends Verify and is returned. nil: nobody.
}

// Report is what Verify saw.
type Report struct {
	LogID       string
	Files       int
	Records     uint64 // lines, those of the log about itself included
	FirstSeq    uint64
	LastSeq     uint64
	LastHash    string
	First, Last time.Time
	Heads       int      // signatures that were verified
	Unchecked   int      // signatures that were not, for want of a key
	Tail        uint64   // lines after the last head that was verified; all of them if none was
	Closed      bool     // the last line says that the log was closed in order
	Unclean     []uint64 // where a gateway found a log that was not closed; the first 100
	Torn        int      // lines that a crash tore, declared by the gateway after it
	Lost        uint64   // records that the log says are missing
	Late        uint64
	Dropped     uint64 // last sequence number of the files that rotation has removed; 0: none is missing
	Partial     bool   // the log's beginning was not looked at
	SigningOff  uint64 // where a gateway went on without signing, after others had; 0: nowhere
}

// ParseHead reads a head as people copy it: SEQ:HASH. The error is errs.ConfigInvalid.
func ParseHead(s string) (Head, error) {
	number, h, _ := strings.Cut(strings.ToLower(s), ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	if raw, bad := hex.DecodeString(h); err != nil || bad != nil || len(raw) != len(hash{}) || seq == 0 {
		return Head{}, errs.New(errs.ConfigInvalid, "head %q: it is a sequence number, a colon and the SHA-256 of that line in hex", cutUTF8(s, 100))
	}
	return Head{Sequence: seq, Hash: h}, nil
}
