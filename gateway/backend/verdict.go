package backend

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// HostKeyKind is what was decided about the key that a backend presented.
type HostKeyKind string

// What is decided about host keys. All but the first are refusals. A known key that is accepted is no event.
const (
	HostKeyFirstUse HostKeyKind = "trusted_first_use"   // it was unknown, is trusted from now on, and remembered
	HostKeyChanged  HostKeyKind = "changed"             // another one is known
	HostKeyRevoked  HostKeyKind = "revoked"             // it, or the authority that certified it, is revoked
	HostKeyExpired  HostKeyKind = "expired_certificate" // its certificate is not valid any more, or not yet
	HostKeyConflict HostKeyKind = "conflict"            // it was trusted on first use, but another replica had trusted another one: see Set.RepinHostKeys
	HostKeyRefused  HostKeyKind = "refused"             // for another reason, which Err tells: unknown, wrong principal or authority

	hostKeyKnown   HostKeyKind = ""
	hostKeyUnknown HostKeyKind = "unknown" // reported as HostKeyRefused
)

// HostKeyEvent is a decision about the key that a backend presented.
type HostKeyEvent struct {
	Kind      HostKeyKind
	Backend   string
	Address   string
	Tenant    string   // for whose stream the connection was made
	Presented string   // type and SHA256 fingerprint; of a certificate also the authority's
	Expected  []string // what is known, in the same form; empty: nothing is
	Err       error    // nil: it was accepted
}

// verdict is what judge decides. err is nil for known keys and those that are trusted on first use.
type verdict struct {
	kind     HostKeyKind
	err      error
	expected []string
}

func (p presented) refused(kind HostKeyKind, cause error) verdict {
	if cause == nil {
		return verdict{kind: kind, err: errs.New(errs.HostKeyRefused, "the host key of backend %q (%s) was refused: it presented %s, which is not in %s",
			p.b.Name, p.b.Address, describeKey(p.key), p.b.KnownHostsFile)}
	}
	return verdict{kind: kind, err: errs.Wrap(errs.HostKeyRefused, cause, "the host key of backend %q (%s) was refused: it presented %s", p.b.Name, p.b.Address, describeKey(p.key))}
}

func (p presented) changed(known []string, expected string) verdict {
	return verdict{kind: HostKeyChanged, expected: known, err: errs.New(errs.HostKeyRefused, "the host key of backend %q (%s) has changed: it presented %s, which is not %s",
		p.b.Name, p.b.Address, describeKey(p.key), expected)}
}

// judge compares a key with the files. Where the library tells its reasons in words only, they are found out again.
func (p presented) judge(files hostFiles) verdict {
	cert, certified := p.key.(*ssh.Certificate)
	if files.lists(p.key) || certified && files.lists(cert.SignatureKey) {
		return p.refused(HostKeyRevoked, fmt.Errorf("it or its authority is revoked in %s", p.b.RevokedFile))
	}
	if certified && insecureSignature(cert.Signature.Format) {
		return p.refused(HostKeyRefused, fmt.Errorf("its certificate is signed with %s, which is not secure", cert.Signature.Format))
	}
	if files.db == nil {
		return p.refused(hostKeyUnknown, nil)
	}
	err := files.db.HostKeyCallback()(p.b.Address, p.remote, p.key)
	switch {
	case err == nil && !certified && files.authorityOnly(p):
		err = errors.New("it is known only as an authority for certificates")
	case err == nil:
		return verdict{kind: hostKeyKnown}
	}
	v := p.reason(files, cert, err)
	for _, known := range files.known(p.b) {
		v.expected = append(v.expected, describeKnown(known))
	}
	return v
}

// reason finds out why the library refused a key.
func (p presented) reason(files hostFiles, cert *ssh.Certificate, err error) verdict {
	switch {
	case files.marksRevoked(p, plainKey(p.key)) || cert != nil && files.marksRevoked(p, cert.SignatureKey):
		return p.refused(HostKeyRevoked, fmt.Errorf("it or its authority is revoked in %s", p.b.KnownHostsFile))
	case knownhosts.IsHostKeyChanged(err):
		return p.changed(nil, "any of those in "+p.b.KnownHostsFile)
	case knownhosts.IsHostUnknown(err):
		return p.refused(hostKeyUnknown, nil)
	case cert != nil && files.trusts(p, cert.SignatureKey) && outOfDate(cert, time.Now()):
		return p.refused(HostKeyExpired, err)
	}
	return p.refused(HostKeyRefused, err)
}

// lists reports a key that the file of revoked keys holds.
func (f hostFiles) lists(key ssh.PublicKey) bool {
	_, found := f.revoked[string(plainKey(key).Marshal())]
	return found
}

// marksRevoked reports a plain key that a @revoked line names.
func (f hostFiles) marksRevoked(p presented, key ssh.PublicKey) bool {
	var revoked *xknownhosts.RevokedError
	return errors.As(f.db.HostKeyCallback()(p.b.Address, p.remote, key), &revoked)
}

// authorityOnly reports a plain key that the file lists only in @cert-authority lines, which the library would accept.
func (f hostFiles) authorityOnly(p presented) bool {
	return !slices.ContainsFunc(f.known(p.b), func(known knownhosts.PublicKey) bool {
		return !known.Cert && bytes.Equal(known.Marshal(), p.key.Marshal())
	})
}

// trusts reports an authority that a @cert-authority line names for the backend.
func (f hostFiles) trusts(p presented, authority ssh.PublicKey) bool {
	return slices.ContainsFunc(f.known(p.b), func(known knownhosts.PublicKey) bool {
		return known.Cert && bytes.Equal(known.Marshal(), authority.Marshal())
	})
}

func outOfDate(cert *ssh.Certificate, now time.Time) bool {
	at := uint64(max(now.Unix(), 0))
	return at < cert.ValidAfter || cert.ValidBefore != ssh.CertTimeInfinity && at >= cert.ValidBefore
}

// describeKey names a key as OpenSSH does. Nothing of it is text that a server chose.
func describeKey(key ssh.PublicKey) string {
	text := key.Type() + " " + ssh.FingerprintSHA256(plainKey(key))
	if cert, ok := key.(*ssh.Certificate); ok {
		text += fmt.Sprintf(" (certificate with serial %d by %s)", cert.Serial, ssh.FingerprintSHA256(cert.SignatureKey))
	}
	return text
}

func describeKnown(key knownhosts.PublicKey) string {
	if key.Cert {
		return describeKey(key.PublicKey) + " (authority)"
	}
	return describeKey(key.PublicKey)
}

// report logs a decision and hands it to who records them. A changed key is told loudly, besides being returned: somebody
// may be in between.
func (h *hostKeys) report(p presented, v verdict) {
	if v.kind == hostKeyUnknown {
		v.kind = HostKeyRefused
	}
	args := []any{logging.FieldComponent, "backend", logging.FieldBackend, p.b.Name, logging.FieldPeer, p.b.Address, logging.FieldTenant, p.tenant,
		logging.FieldReason, "host_key_" + string(v.kind), "presented", describeKey(p.key)}
	if len(v.expected) > 0 {
		args = append(args, "expected", strings.Join(v.expected, ", "))
	}
	if v.err != nil {
		args = append(args, logging.FieldCode, errs.CodeOf(v.err).String(), logging.FieldError, v.err.Error())
	}
	switch v.kind {
	case HostKeyFirstUse:
		h.log.Warn("the host key of a backend is trusted on first use", args...)
	case HostKeyChanged:
		h.log.Error("THE HOST KEY OF A BACKEND HAS CHANGED: somebody may be in between, or the server was set up anew", args...)
	default:
		h.log.Error("the host key of a backend was refused", args...)
	}
	if h.event != nil {
		h.event(HostKeyEvent{Kind: v.kind, Backend: p.b.Name, Address: p.b.Address, Tenant: p.tenant, Presented: describeKey(p.key), Expected: v.expected, Err: v.err})
	}
}
