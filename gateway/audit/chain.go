package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"time"
)

// chain is where a log stands: what the next line follows. It is a value, so that lines can be made on a copy, which
// replaces the original once they are written.
type chain struct {
	id     string // of the log, random
	seq    uint64 // of the last line
	last   hash   // of the last line
	file   uint64 // number of the current file
	size   int64  // of the current file, in bytes
	header int64  // bytes of its first line
	tail   int    // lines since the last head
	head   Head   // the last one
}

// Head is a place in the log, signed if a key is configured.
type Head struct {
	Sequence uint64
	Hash     string // of its line, in hex
	Time     time.Time
}

// signer makes heads; nil when no key is configured.
type signer struct {
	key         ed25519.PrivateKey
	fingerprint string
}

func newSigner(key ed25519.PrivateKey) *signer {
	return &signer{key: key, fingerprint: Fingerprint(key.Public().(ed25519.PublicKey))}
}

// lines makes lines of a chain in a buffer.
type lines struct {
	chain
	buf      []byte
	scratch  []byte
	instance string
	signer   *signer // may be nil
}

// add appends one line with the event's part that appendEvent or appendControl made.
func (l *lines) add(at time.Time, body []byte) {
	start := len(l.buf)
	l.buf = appendLine(l.buf, at, l.instance, l.seq+1, body, l.last)
	l.last = sha256.Sum256(l.buf[start:])
	l.buf = append(l.buf, '\n')
	l.seq++
	l.size += int64(len(l.buf) - start)
	l.tail++
}

func (l *lines) control(at time.Time, action Action, detail string, c control) {
	l.scratch = appendControl(l.scratch[:0], action, detail, c)
	l.add(at, l.scratch)
}

// seal appends a head or a close, signed if there is a key.
func (l *lines) seal(kind string, at time.Time) {
	l.scratch = sealBody(l.scratch[:0], kind, l.id, "", "")
	if l.signer != nil {
		text := signedText(kind, l.id, l.seq+1, hex.EncodeToString(l.last[:]), at.UTC().Format(time.RFC3339Nano), l.instance)
		sig := base64.StdEncoding.EncodeToString(ed25519.Sign(l.signer.key, text))
		l.scratch = sealBody(l.scratch[:0], kind, l.id, l.signer.fingerprint, sig)
	}
	l.add(at, l.scratch)
	l.tail = 0
	l.head = Head{Sequence: l.seq, Hash: hex.EncodeToString(l.last[:]), Time: at}
}

// sealBody is the event's part of a head or close. A verifier makes it again, to see that nothing was added.
func sealBody(b []byte, kind, id, key, signature string) []byte {
	return appendControl(b, Lifecycle, sealDetail(kind), control{Kind: kind, ID: id, Key: key, Signature: signature})
}

func sealDetail(kind string) string {
	if kind == kindClose {
		return "the log is closed"
	}
	return "all lines up to here are signed"
}
