package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"
	"unicode/utf8"
)

// Line is one line of a log as a reader sees it. Field names are part of the format.
type Line struct {
	Time       string   `json:"time"`
	Instance   string   `json:"instance"`
	Seq        uint64   `json:"seq"`
	Action     string   `json:"action"`
	Result     string   `json:"result"`
	Actor      string   `json:"actor"`
	Issuer     string   `json:"issuer"`
	TokenID    string   `json:"token_id"`
	Tenant     string   `json:"tenant"`
	Pod        string   `json:"pod"`
	Client     string   `json:"client"`
	Route      string   `json:"route"`
	Backend    string   `json:"backend"`
	Target     string   `json:"target"`
	Code       string   `json:"code"`
	Detail     string   `json:"detail"`
	Sent       uint64   `json:"sent"`
	Received   uint64   `json:"received"`
	DurationMS float64  `json:"duration_ms"`
	Tunnel     string   `json:"tunnel"`
	Stream     string   `json:"stream"`
	Trace      string   `json:"trace"`
	Log        *control `json:"log"`
	Prev       string   `json:"prev"`

	at     time.Time
	length int
}

// At is when the act was recorded.
func (l *Line) At() time.Time { return l.at }

// parseLine reads a line without its newline. Fields that this version does not know are left alone.
func parseLine(b []byte) (*Line, error) {
	if len(b) > maxLine {
		return nil, errors.New("it is longer than a line can be")
	}
	if !utf8.Valid(b) {
		return nil, errors.New("it is not UTF-8")
	}
	l := &Line{length: len(b)}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, errors.New("it is not JSON with the fields of a line")
	}
	var err error
	if l.at, err = time.Parse(time.RFC3339Nano, l.Time); err != nil {
		return nil, errors.New("its time is not in RFC 3339")
	}
	var prev hash
	if len(l.Prev) != 2*len(prev) {
		return nil, errors.New("its prev is not a SHA-256 hash")
	}
	if _, err := hex.Decode(prev[:], []byte(l.Prev)); err != nil || l.Seq == 0 || l.Action == "" {
		return nil, errors.New("it lacks seq, action or prev")
	}
	if !bytes.HasPrefix(b, []byte("{")) || !bytes.HasSuffix(b, []byte("}")) {
		return nil, errors.New("it has something around its object")
	}
	return l, nil
}

// kind is the kind of a line that the log wrote about itself; "" for events.
func (l *Line) kind() string {
	if l == nil || l.Log == nil {
		return ""
	}
	return l.Log.Kind
}
