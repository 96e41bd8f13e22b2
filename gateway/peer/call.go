package peer

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Call is a tunnel that came to another replica. That one has checked the certificate, and nothing else that the owner could not
// check itself.
type Call struct {
	Tunnel      link.ID
	Token       string // the Authorization field, as it came from the sidecar
	Certificate []byte // the sidecar's, in DER, if it has shown to have its key; else empty
	Client      string // the sidecar's address
	Via         string // name of the replica that it came to
}

// Fields of a call's header. Those whose bytes are not for a header are in base64.
const (
	fieldToken       = "Authorization"
	fieldReplica     = "Fairlead-Replica-Id"
	fieldTunnel      = "Fairlead-Tunnel"
	fieldCertificate = "Fairlead-Certificate"
	fieldClient      = "Fairlead-Client"
	fieldVia         = "Fairlead-Via"
	fieldTransfer    = "Fairlead-Transfer"
)

// Limits of a call, in bytes.
const (
	maxToken       = 16 << 10 // as in a request to gateway/server
	maxCertificate = 16 << 10
	maxText        = 255
)

// callHeader is a call with what goes with it.
type callHeader struct {
	Call
	replica  string // ID of the one that is meant; empty: whoever has the tunnel
	transfer []byte
}

func (c callHeader) check() error {
	switch {
	case len(c.Token) > maxToken, len(c.Certificate) > maxCertificate, len(c.transfer) > link.MaxTransfer,
		len(c.Client) > maxText, len(c.Via) > maxText, len(c.replica) > maxText:
		return errs.New(errs.BadRequest, "a call with a token of %d, a certificate of %d, a handshake of %d, and names of %d, %d and %d bytes; allowed are %d, %d, %d and %d",
			len(c.Token), len(c.Certificate), len(c.transfer), len(c.Client), len(c.Via), len(c.replica), maxToken, maxCertificate, link.MaxTransfer, maxText)
	case strings.ContainsFunc(c.Token, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errs.New(errs.BadRequest, "a call with a token that fits no header")
	}
	return nil
}

// header writes a call.
func (c callHeader) header() http.Header {
	h := http.Header{}
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	set(fieldToken, c.Token)
	set(fieldReplica, base64.StdEncoding.EncodeToString([]byte(c.replica)))
	set(fieldTunnel, c.Tunnel.String())
	set(fieldCertificate, base64.StdEncoding.EncodeToString(c.Certificate))
	set(fieldClient, base64.StdEncoding.EncodeToString([]byte(c.Client)))
	set(fieldVia, base64.StdEncoding.EncodeToString([]byte(c.Via)))
	set(fieldTransfer, base64.StdEncoding.EncodeToString(c.transfer))
	return h
}

// parseCall reads what header has written. all gives every value of a field. Nothing of the result is memory of the request.
func parseCall(all func(name string) [][]byte) (c callHeader, err error) {
	f := fieldReader{all: all}
	c.Token = string(f.one(fieldToken))
	c.replica = string(f.coded(fieldReplica))
	id := f.one(fieldTunnel)
	c.Certificate = f.coded(fieldCertificate)
	c.Client = string(f.coded(fieldClient))
	c.Via = string(f.coded(fieldVia))
	c.transfer = f.coded(fieldTransfer)
	if f.err == nil && len(id) != hex.EncodedLen(len(c.Tunnel)) {
		f.err = errs.New(errs.BadRequest, "a call for no tunnel")
	}
	if f.err == nil {
		if _, err := hex.Decode(c.Tunnel[:], id); err != nil {
			f.err = errs.New(errs.BadRequest, "a call for a tunnel that is none")
		}
	}
	if f.err == nil {
		f.err = c.check()
	}
	return c, f.err
}

// fieldReader reads fields; its first error sticks. No error quotes what was read.
type fieldReader struct {
	all func(name string) [][]byte
	err error
}

func (f *fieldReader) one(name string) []byte {
	values := f.all(name)
	if len(values) > 1 && f.err == nil {
		f.err = errs.New(errs.BadRequest, "%s is given twice", name)
	}
	if len(values) == 0 || f.err != nil {
		return nil
	}
	return values[0]
}

func (f *fieldReader) coded(name string) []byte {
	text := f.one(name)
	if len(text) == 0 {
		return nil
	}
	b, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil && f.err == nil {
		f.err = errs.New(errs.BadRequest, "%s is not in base64", name)
	}
	return b
}
