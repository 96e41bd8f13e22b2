package link

import (
	"encoding/binary"
	"fmt"

	"fairlead/shared/errs"
)

// Subprotocol is the WebSocket subprotocol of this version of the link.
const Subprotocol = "fairlead.link.v1"

// Version is what HELLO and WELCOME carry.
const Version = 1

// Every frame is one binary WebSocket message: a fixed header, then the payload. Big-endian:
//
//	type u8 | flags u8 | reserved u16 (zero) | stream u32 | offset u64 | payload …
//
// PROTOCOL.md has the meaning of each field by type.
const headerSize = 16

// frameType names a frame. The top bit marks types that a receiver who does not know them ignores.
type frameType uint8

const (
	typeChallenge frameType = 0x01 // gateway: nonce for the proof
	typeHello     frameType = 0x02 // sidecar: version, windows, and for a resume tunnel id, epoch, proof
	typeWelcome   frameType = 0x03 // gateway: tunnel id, resume key (new tunnels), windows, heartbeat, replica
	typeSync      frameType = 0x04 // after a resume, each way: the state of every stream known
	typeOpen      frameType = 0x10 // sidecar: route, priority, peer, trace
	typeOpened    frameType = 0x11 // gateway: the backend is connected
	typeData      frameType = 0x12 // offset: absolute position of the first byte
	typeCredit    frameType = 0x13 // offset: absolute limit; payload: consumed u64
	typeFin       frameType = 0x14 // offset: final size of the direction
	typeReset     frameType = 0x15 // code u16, retry-after ms u32, message; stream 0: the tunnel is over
	typePing      frameType = 0x20 // offset: opaque, returned by PONG
	typePong      frameType = 0x21
	typeAuth      frameType = 0x22 // sidecar: a renewed token; gateway (flagAnswer): code u16, expiry
	typeGoAway    frameType = 0x23 // gateway: drain

	typeIgnorable frameType = 0x80
)

// Flags; their meaning depends on the type.
const (
	flagFin        = 0x01 // DATA: last of its direction; CREDIT: the final size is consumed
	flagCompressed = 0x02 // DATA: the payload is a frame of zstd
	flagCompress   = 0x01 // OPENED: both sides may compress the stream
	flagAck        = 0x01 // RESET: answers a RESET
	flagMore       = 0x01 // SYNC: another SYNC frame follows
	flagAnswer     = 0x01 // AUTH: the gateway's answer
)

type header struct {
	kind   frameType
	flags  uint8
	stream uint32
	offset uint64
}

func (h header) put(b *[headerSize]byte) {
	b[0], b[1], b[2], b[3] = byte(h.kind), h.flags, 0, 0
	binary.BigEndian.PutUint32(b[4:], h.stream)
	binary.BigEndian.PutUint64(b[8:], h.offset)
}

func parseHeader(b *[headerSize]byte) (header, error) {
	if b[2]|b[3] != 0 {
		return header{}, violation("reserved bits set in a frame of type %#x", b[0])
	}
	return header{frameType(b[0]), b[1], binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])}, nil
}

func violation(format string, args ...any) error {
	return errs.New(errs.ProtocolViolation, format, args...)
}

func (t frameType) String() string {
	names := map[frameType]string{typeChallenge: "CHALLENGE", typeHello: "HELLO", typeWelcome: "WELCOME", typeSync: "SYNC", typeOpen: "OPEN",
		typeOpened: "OPENED", typeData: "DATA", typeCredit: "CREDIT", typeFin: "FIN", typeReset: "RESET", typePing: "PING", typePong: "PONG",
		typeAuth: "AUTH", typeGoAway: "GOAWAY"}
	if n, ok := names[t]; ok {
		return n
	}
	return fmt.Sprintf("type %#x", uint8(t))
}

// fields reads a payload made of fixed-width numbers and length-prefixed strings. The first shortage sticks: callers
// check err once at the end. Bytes after the last known field are left for later versions.
type fields struct {
	b   []byte
	err error
}

// more says whether anything is left: a field that only later versions send.
func (f *fields) more() bool { return f.err == nil && len(f.b) > 0 }

func (f *fields) take(n int) []byte {
	if f.err != nil || len(f.b) < n {
		if f.err == nil {
			f.err = violation("payload ends early: %d bytes wanted, %d left", n, len(f.b))
		}
		return nil
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (f *fields) u8() uint8 {
	if p := f.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (f *fields) u16() uint16 {
	if p := f.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if p := f.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if p := f.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (f *fields) bytes() []byte    { return f.take(int(f.u16())) }
func (f *fields) text() string     { return string(f.bytes()) }
func (f *fields) fixed(dst []byte) { copy(dst, f.take(len(dst))) }

func appendText(b []byte, s string) []byte {
	if len(s) > 0xFFFF {
		s = s[:0xFFFF]
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}
