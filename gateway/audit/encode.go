package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"fairlead/shared/errs"
)

// Bounds of what a line holds, in bytes as they are in the file, escapes included. Together they keep a line below maxLine.
const (
	maxLine     = 8 << 10
	maxWord     = 64   // action, result
	maxInstance = 128  // name of the gateway
	maxText     = 384  // every other text
	maxDetail   = 1536 // the sentence for people
)

const cutMark = "…" // ends a text that was cut

// hash is SHA-256 over the bytes of a line without its newline.
type hash = [sha256.Size]byte

// appendEvent appends the event's part of a line: everything between the sequence number and the hash.
func appendEvent(b []byte, e *Event) []byte {
	b = appendText(b, `"action":`, string(e.Action), maxWord)
	b = appendField(b, `,"result":`, string(e.Result), maxWord)
	b = appendField(b, `,"actor":`, e.Actor, maxText)
	b = appendField(b, `,"issuer":`, e.Issuer, maxText)
	b = appendField(b, `,"token_id":`, e.TokenID, maxText)
	b = appendField(b, `,"tenant":`, e.Tenant, maxText)
	b = appendField(b, `,"pod":`, e.Pod, maxText)
	b = appendField(b, `,"client":`, e.Client, maxText)
	b = appendField(b, `,"route":`, e.Route, maxText)
	b = appendField(b, `,"backend":`, e.Backend, maxText)
	b = appendField(b, `,"target":`, e.Target, maxText)
	if e.Code != 0 {
		b = appendField(b, `,"code":`, e.Code.String(), maxWord)
	}
	b = appendField(b, `,"detail":`, e.Detail, maxDetail)
	b = appendNumber(b, `,"sent":`, e.Sent)
	b = appendNumber(b, `,"received":`, e.Received)
	if e.Duration > 0 {
		b = append(b, `,"duration_ms":`...)
		b = strconv.AppendFloat(b, float64(e.Duration.Microseconds())/1000, 'f', -1, 64)
	}
	b = appendField(b, `,"tunnel":`, e.Tunnel, maxText)
	b = appendField(b, `,"stream":`, e.Stream, maxText)
	return appendField(b, `,"trace":`, e.Trace, maxText)
}

func appendField(b []byte, key, value string, limit int) []byte {
	if value == "" {
		return b
	}
	return appendText(b, key, value, limit)
}

func appendNumber(b []byte, key string, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = append(b, key...)
	return strconv.AppendUint(b, n, 10)
}

// appendText appends a key and a JSON string of at most limit bytes between its quotes. Bytes that are not UTF-8 become
// U+FFFD. Whatever could move a terminal's cursor, hide text or end a line somewhere is escaped.
func appendText(b []byte, key, s string, limit int) []byte {
	b = append(b, key...)
	b = append(b, '"')
	start, fits := len(b), len(b) // fits: where to cut so that the mark still has room
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf && c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
			b = append(b, c)
			i++
		} else {
			r, n := utf8.DecodeRuneInString(s[i:])
			b = appendRune(b, r)
			i += n
		}
		if len(b)-start <= limit-len(cutMark) {
			fits = len(b)
		} else if len(b)-start > limit {
			b = append(b[:fits], cutMark...)
			break
		}
	}
	return append(b, '"')
}

// asRead is what a reader gets back of a text that appendText wrote. Signatures are over what can be read.
func asRead(s string, limit int) (read string) {
	_ = json.Unmarshal(appendText(nil, "", s, limit), &read) // cannot fail: it is a JSON string
	return read
}

func appendRune(b []byte, r rune) []byte {
	switch {
	case r == '"' || r == '\\':
		return append(b, '\\', byte(r))
	case r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0xfeff:
		const digits = "0123456789abcdef"
		return append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
	}
	return utf8.AppendRune(b, r) // U+FFFD for what was no UTF-8
}

// appendLine appends a whole line without its newline. body is what appendEvent made.
func appendLine(b []byte, at time.Time, instance string, seq uint64, body []byte, prev hash) []byte {
	b = append(b, `{"time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	b = appendText(b, `","instance":`, instance, maxInstance)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, ',')
	b = append(b, body...)
	b = append(b, `,"prev":"`...)
	b = hex.AppendEncode(b, prev[:])
	return append(b, `"}`...)
}

// Kinds of lines that the log writes about itself.
const (
	kindBegin    = "begin"    // the first line of a log
	kindContinue = "continue" // the first line of every later file of it
	kindOpen     = "open"     // a gateway goes on with the log
	kindRecover  = "recover"  // what stands before it was torn by a crash
	kindHead     = "head"     // a signature
	kindClose    = "close"    // the gateway ended in order
	kindDrop     = "drop"     // an old file is about to be removed
	kindLoss     = "loss"     // records were lost
)

// control is the object "log" of a line that the log writes about itself; events of others cannot have one.
type control struct {
	Kind      string `json:"kind"`
	ID        string `json:"id,omitempty"`        // begin, continue, open, head, close: which log, random
	Version   int    `json:"version,omitempty"`   // begin, continue: of the format
	File      uint64 `json:"file,omitempty"`      // begin, continue: number of this file, from 1
	Unclean   bool   `json:"unclean,omitempty"`   // open: the log does not end with a close
	Torn      int64  `json:"torn,omitempty"`      // recover, begin, continue: bytes that a crash left of a line
	After     string `json:"after,omitempty"`     // recover: hash of the last line before the torn one
	Lost      uint64 `json:"lost,omitempty"`      // loss: records that are not in the log
	Late      uint64 `json:"late,omitempty"`      // loss: records that are in the log, but whose acts were told otherwise
	Since     string `json:"since,omitempty"`     // loss
	Name      string `json:"name,omitempty"`      // drop: the file
	Last      uint64 `json:"last,omitempty"`      // drop: its last sequence number
	Hash      string `json:"hash,omitempty"`      // drop: hash of its last line
	Records   int    `json:"records,omitempty"`   // begin, open: a head follows after at most so many lines
	Key       string `json:"key,omitempty"`       // begin, open, head, close: fingerprint of the signing key
	Signature string `json:"signature,omitempty"` // head, close: base64 of the Ed25519 signature over signedText
}

// appendControl appends the event's part of a line that the log writes about itself.
func appendControl(b []byte, action Action, detail string, c control) []byte {
	b = appendEvent(b, &Event{Action: action, Result: Allowed, Actor: "gateway", Detail: detail})
	if action == Losses { // nothing was allowed there
		b = appendEvent(b[:0], &Event{Action: action, Result: Failed, Actor: "gateway", Detail: detail, Code: errs.AuditFailed})
	}
	object, _ := json.Marshal(c) // cannot fail: strings, numbers and a bool
	b = append(b, `,"log":`...)
	return append(b, object...)
}
