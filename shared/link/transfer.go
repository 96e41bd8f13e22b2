package link

import (
	"encoding/binary"
	"time"

	"fairlead/shared/errs"
)

// A Handshake that goes on at another replica travels as
//
//	version u8 (1) | round trip u32 µs | nonce, 32 bytes | payload of HELLO, as it was read
//
// all big-endian. PROTOCOL.md, section 6, says why.
const (
	transferVersion = 1
	transferHead    = 1 + 4 + nonceSize
	// MaxTransfer bounds what Transfer returns, in bytes: the payload of HELLO is a handshake's.
	MaxTransfer = transferHead + minMessage
)

// Transfer is what another replica needs, to go on with Resume in this one's place: everything that was said so far. It holds
// a proof, which is good for this one attempt only; still, it belongs into no log.
func (hs *Handshake) Transfer() []byte {
	b := make([]byte, 0, transferHead+len(hs.raw))
	b = append(b, transferVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(min(max(hs.rtt.Microseconds(), 0), 1<<32-1)))
	b = append(b, hs.nonce[:]...)
	return append(b, hs.raw...)
}

// maxTransferRTT bounds the round trip that another replica may claim to have measured: a handshake does not take longer.
const maxTransferRTT = 10 * time.Second

// Transferred is the Handshake whose Transfer was data, to go on over conn: the sidecar's next frames come there, and WELCOME is
// its next one. Only a resume can be transferred. data is read strictly, as a peer's; its proof is checked by Resume.
// It is kept; conn may be nil when only data is to be checked.
func Transferred(conn Conn, data []byte) (*Handshake, error) {
	if len(data) < transferHead || len(data) > MaxTransfer {
		return nil, violation("a transferred handshake of %d bytes; allowed are %d to %d", len(data), transferHead, MaxTransfer)
	}
	if data[0] != transferVersion {
		return nil, errs.New(errs.VersionUnsupported, "a transferred handshake of version %d; this gateway knows %d", data[0], transferVersion)
	}
	hs := &Handshake{conn: conn, rtt: min(time.Duration(binary.BigEndian.Uint32(data[1:]))*time.Microsecond, maxTransferRTT)}
	copy(hs.nonce[:], data[1+4:])
	if err := hs.take(data[transferHead:]); err != nil {
		return nil, err
	}
	if _, resumes := hs.Tunnel(); !resumes {
		return nil, violation("a transferred handshake that resumes no tunnel")
	}
	return hs, nil
}

// take reads the payload of HELLO, and keeps it.
func (hs *Handshake) take(p []byte) (err error) {
	if hs.hello, err = parseHello(p); err != nil {
		return err
	}
	if hs.hello.version != Version {
		return errs.New(errs.VersionUnsupported, "the sidecar speaks version %d of the link, this gateway %d", hs.hello.version, Version)
	}
	hs.raw = p
	return hs.hello.limits.check()
}

// Epoch is the number of the lane that the sidecar asks for; 0 for a new tunnel.
func (hs *Handshake) Epoch() uint64 { return hs.hello.epoch }
