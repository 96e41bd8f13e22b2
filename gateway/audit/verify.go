package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"

	"fairlead/shared/errs"
)

// unsignedSlack is how many lines the log may write about itself between a head that is due and the head.
const unsignedSlack = 8

// Verify reads the sources, in their order, as one log. The error is errs.AuditBroken with a *Damage inside it when the log
// does not verify; any other one says that it could not be read. The report tells what was seen up to there.
func Verify(cfg VerifyConfig, sources []Source) (*Report, error) {
	v := newVerifier(cfg)
	r := newReader(sources)
	defer r.close()
	v.more = r
	cur, err := r.next()
	for err == nil && cur != nil {
		var next *raw
		if next, err = r.next(); err == nil {
			if err = v.step(cur, next); err == nil {
				cur = next
			}
		}
	}
	if err == nil {
		err = v.end()
	}
	v.report.Files = min(r.at+1, len(sources))
	return &v.report, err
}

// verifier walks along the chain.
type verifier struct {
	cfg     VerifyConfig
	keys    map[string]ed25519.PublicKey // by fingerprint
	missing map[uint64]string            // heads that were not seen yet
	more    *reader
	report  Report

	prev    *raw // the last line that was good; nil: none yet
	visit   *raw // the one that Visit has not seen yet
	before  hash // of the line before prev
	last    hash // of prev, or of a torn line behind it
	began   *raw // the first line, when files before it are missing
	dropped bool // a line says that those were removed by rotation
	third   *raw // the line behind the next one, once blame needs it
	promise int  // a head comes after so many lines; 0: none is promised
	renewed int  // what is promised from the next head on
	run     int  // lines since the last head, or since one was promised
}

func newVerifier(cfg VerifyConfig) *verifier {
	v := &verifier{cfg: cfg, keys: make(map[string]ed25519.PublicKey), missing: make(map[uint64]string)}
	for _, k := range cfg.Keys {
		v.keys[Fingerprint(k)] = k
	}
	for _, h := range cfg.Heads {
		v.missing[h.Sequence] = h.Hash
	}
	return v
}

// step looks at one line, knowing the next.
func (v *verifier) step(c, next *raw) error {
	if v.isTorn(c, next) {
		v.report.Torn++
		v.before, v.last = v.last, c.hash
		return nil
	}
	if err := v.chained(c, next); err != nil {
		return err
	}
	if err := v.inFile(c); err != nil {
		return err
	}
	if err := v.about(c); err != nil {
		return err
	}
	if h, ok := v.missing[c.line.Seq]; ok && h == hexOf(c.hash) {
		delete(v.missing, c.line.Seq)
	}
	v.count(c)
	if v.run++; len(v.keys) > 0 && v.promise > 0 && v.run > v.promise+unsignedSlack {
		return v.damage(c, Unsigned, fmt.Sprintf("a head was promised after %d lines, and there is none", v.promise))
	}
	if err := v.show(); err != nil {
		return err
	}
	if v.prev == nil || v.last == v.prev.hash {
		v.before = v.last
	}
	v.prev, v.visit, v.last = c, c, c.hash
	return nil
}

func (v *verifier) show() error {
	if v.visit == nil || v.cfg.Visit == nil {
		return nil
	}
	l := v.visit
	v.visit = nil
	return v.cfg.Visit(l.line, l.bytes)
}

// expected is the sequence number that the next line must have.
func (v *verifier) expected() uint64 {
	if v.prev == nil {
		return 1
	}
	return v.prev.line.Seq + 1
}

// isTorn reports whether c is what a crash left of a line, declared by the line behind it, in the only way that a gateway
// does: with its length, its hash and the hash of the line before it.
func (v *verifier) isTorn(c, next *raw) bool {
	if v.prev == nil || !c.whole || next.kind() != kindRecover || next.source != c.source {
		return false
	}
	return next.follows(v.expected(), c.hash) && next.line.Log.Torn == c.length && next.line.Log.After == hexOf(v.prev.hash)
}

// chained checks that c follows the line before it.
func (v *verifier) chained(c, next *raw) error {
	if v.prev == nil {
		if c.line != nil && c.whole && v.mayBegin(c) {
			return nil
		}
		return v.blame(c, next)
	}
	if c.line == nil || !c.whole || !c.follows(v.expected(), v.last) {
		return v.blame(c, next)
	}
	if c.kind() == kindRecover && v.last == v.prev.hash {
		return v.damage(c, Removed, "the torn line that it speaks of is not before it")
	}
	return nil
}

// mayBegin reports whether the log may begin with c.
func (v *verifier) mayBegin(c *raw) bool {
	if c.kind() == kindBegin {
		return c.follows(1, hash{})
	}
	if c.kind() == kindContinue && c.line.Seq > 1 && !v.cfg.Partial && !c.source.Stream {
		v.began = c // someone must say what became of the files before
		return true
	}
	if c.line.Seq > 1 && (v.cfg.Partial && c.kind() == kindContinue || c.source.Stream) {
		v.report.Partial = true
		return true
	}
	return false
}

// inFile checks that the line is in the file where it belongs.
func (v *verifier) inFile(c *raw) error {
	header := c.kind() == kindBegin || c.kind() == kindContinue
	switch {
	case c.kind() == kindBegin && c.line.Seq != 1:
		return v.damage(c, Inserted, "a log begins once")
	case c.source.Stream:
		return nil
	case c.first && !header:
		return v.damage(c, Removed, "the file's first line is missing")
	case c.first && c.source.Number != 0 && c.line.Log.File != c.source.Number:
		return v.damage(c, Reordered, fmt.Sprintf("it begins file %d of the log, but its name says %d", c.line.Log.File, c.source.Number))
	}
	return nil
}

// about checks what the log says about itself.
func (v *verifier) about(c *raw) error {
	if c.line.Log == nil {
		return nil
	}
	log := c.line.Log
	if log.ID != "" && v.report.LogID == "" {
		v.report.LogID = log.ID
	}
	if log.ID != "" && log.ID != v.report.LogID {
		return v.damage(c, Inserted, fmt.Sprintf("it is of log %s, but this is log %s", log.ID, v.report.LogID))
	}
	switch log.Kind {
	case kindBegin, kindContinue, kindOpen:
		v.opened(c)
	case kindHead, kindClose:
		return v.signed(c)
	case kindLoss:
		v.report.Lost += log.Lost
		v.report.Late += log.Late
	case kindDrop:
		if v.began != nil && log.Last == v.began.line.Seq-1 && log.Hash == v.began.line.Prev {
			v.dropped = true
		}
	}
	return nil
}

func (v *verifier) opened(c *raw) {
	log := c.line.Log
	if log.Unclean && len(v.report.Unclean) < 100 {
		v.report.Unclean = append(v.report.Unclean, c.line.Seq)
	}
	if v.promise > 0 && log.Records == 0 {
		v.report.SigningOff = c.line.Seq
	}
	if v.promise == 0 {
		v.run = 0
	}
	// A head comes right behind this line; what was before it may still be as long as was promised then.
	v.promise, v.renewed = max(v.promise, log.Records), log.Records
	if log.Records == 0 {
		v.promise = 0
	}
}

// signed checks a head or close: its signature, and that its line holds nothing that the signature does not cover.
func (v *verifier) signed(c *raw) error {
	log := c.line.Log
	if log.Signature == "" {
		return nil
	}
	if len(v.keys) == 0 {
		v.report.Unchecked++
		return nil
	}
	key, ok := v.keys[log.Key]
	if !ok {
		return v.damage(c, BadSignature, fmt.Sprintf("it is signed by %q, which is none of the keys given", log.Key))
	}
	if !v.genuine(c, key) {
		return v.damage(c, BadSignature, "the signature does not fit the line")
	}
	v.report.Heads++
	v.report.Tail, v.run = 0, -1 // the head itself will be counted
	v.promise = v.renewed
	return nil
}

func (v *verifier) genuine(c *raw, key ed25519.PublicKey) bool {
	l := c.line
	sig, err := base64.StdEncoding.Strict().DecodeString(l.Log.Signature)
	if err != nil || !ed25519.Verify(key, signedText(l.Log.Kind, l.Log.ID, l.Seq, l.Prev, l.Time, l.Instance), sig) {
		return false
	}
	body := sealBody(nil, l.Log.Kind, l.Log.ID, l.Log.Key, l.Log.Signature)
	return bytes.Equal(c.bytes, appendLine(nil, l.at, l.Instance, l.Seq, body, c.prevHash()))
}

// count adds the line to the report.
func (v *verifier) count(c *raw) {
	r := &v.report
	if r.Records == 0 {
		r.FirstSeq, r.First = c.line.Seq, c.line.at
	}
	r.Records++
	r.LastSeq, r.LastHash, r.Last = c.line.Seq, hexOf(c.hash), c.line.at
	r.Closed = c.kind() == kindClose
	if signed := c.line.Log != nil && c.line.Log.Signature != ""; !signed || len(v.keys) == 0 {
		r.Tail++
	}
}

// end checks what only the whole log shows.
func (v *verifier) end() error {
	if err := v.show(); err != nil {
		return err
	}
	switch {
	case v.prev == nil:
		return v.whole(Removed, "there is no line in it")
	case v.began != nil && !v.dropped:
		return v.damage(v.began, Removed, fmt.Sprintf("lines 1 to %d are missing, and no line says that rotation removed them", v.began.line.Seq-1))
	case len(v.keys) > 0 && v.report.Heads == 0:
		return v.whole(Unsigned, "a public key was given, but no head is signed")
	case v.cfg.MaxUnsigned > 0 && v.report.Tail > uint64(v.cfg.MaxUnsigned):
		return v.whole(Unsigned, fmt.Sprintf("%d lines follow the last signed head: allowed are %d", v.report.Tail, v.cfg.MaxUnsigned))
	}
	if v.began != nil {
		v.report.Dropped = v.began.line.Seq - 1
	}
	for seq, h := range v.missing {
		return v.whole(Truncated, fmt.Sprintf("it does not contain line %d with hash %s; it ends with line %d", seq, h, v.report.LastSeq))
	}
	return nil
}

func (v *verifier) damage(c *raw, kind, text string) error {
	seq := c.seq()
	if seq == 0 {
		seq = v.expected()
	}
	d := &Damage{File: c.source.Name, Line: c.number, Seq: seq, Kind: kind, Text: text}
	return errs.Wrap(errs.AuditBroken, d, "the audit log is not as it was written")
}

func (v *verifier) whole(kind, text string) error {
	return errs.Wrap(errs.AuditBroken, &Damage{Kind: kind, Text: text}, "the audit log is not as it was written")
}
