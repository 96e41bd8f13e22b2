// Package load makes the traffic that the benchmarks measure: a target server and a client, each a process of its own
// so that what they use is not counted, and the scenarios that drive them over a running peer.
package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// Every connection starts with a header of 64 bytes that tells the target what to do:
//
//	magic "FLBENCH1" | op u8 | zero [7]byte | seed u64 | length u64 | zero [32]byte      big-endian
//
// The target answers an echo with the header itself, so that it is the first 64-byte echo of the connection.
const (
	headerSize = 64
	magic      = "FLBENCH1"
)

// op is what the target does with a connection.
type op byte

const (
	opEcho     op = 'E' // send back every byte, the header first
	opUpload   op = 'U' // take length bytes (0: until the end), verify them, answer with a receipt, end
	opProgress op = 'P' // as opUpload until the end, and tell the count of bytes received (u64) every progressEvery
	opDownload op = 'D' // send length bytes (0: until the client goes away), end
)

// header is the first message of a connection.
type header struct {
	op     op
	seed   uint64 // makes the connection's content its own
	length uint64 // bytes of content
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	b[8] = byte(h.op)
	binary.BigEndian.PutUint64(b[16:], h.seed)
	binary.BigEndian.PutUint64(b[24:], h.length)
	return b
}

func parseHeader(b []byte) (header, error) {
	if len(b) != headerSize || string(b[:len(magic)]) != magic {
		return header{}, fmt.Errorf("a connection began with %.8q and not with the load protocol", b)
	}
	return header{op(b[8]), binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])}, nil
}

// receiptSize is the length of a receipt: the count of bytes received (u64), after all of them were verified.
const receiptSize = 8

// The content of a connection is a sequence of blocks of blockSize bytes. Each starts with a stamp, the connection's
// seed mixed with the block's number, and goes on with bytes that are random but the same in every block. So the
// receiver can compare every byte with what it must be, at the price of a memory comparison, and a block that is lost,
// repeated, out of order or another connection's shows.
const (
	blockSize = 128 << 10
)

// filler makes the part that all blocks share. It does not compress.
func filler() []byte {
	source := rand.NewChaCha8([32]byte([]byte("fairlead bench content, block 0.")))
	b := make([]byte, blockSize)
	_, _ = source.Read(b) // never fails
	return b
}

func stamp(seed, block uint64) uint64 {
	const odd = 0x9E3779B97F4A7C15 // 2^64 divided by the golden ratio: spreads consecutive numbers (Knuth, TAOCP 6.4)
	return seed ^ (block+1)*odd
}

// source makes content.
type source struct {
	seed, block uint64
	buf         []byte
}

func newSource(seed uint64) *source { return &source{seed: seed, buf: filler()} }

// next returns the next block, valid until the next call.
func (s *source) next() []byte {
	binary.BigEndian.PutUint64(s.buf, stamp(s.seed, s.block))
	s.block++
	return s.buf
}

// errContent says that received bytes are not those that were sent.
var errContent = errors.New("content is not what was sent")

// verifier compares received bytes with what they must be.
type verifier struct {
	seed   uint64
	offset uint64 // of the next byte
	filler []byte
}

func newVerifier(seed uint64) *verifier { return &verifier{seed: seed, filler: filler()} }

// check takes the next received bytes.
func (v *verifier) check(p []byte) error {
	for len(p) > 0 {
		at := int(v.offset % blockSize)
		if at == 0 {
			binary.BigEndian.PutUint64(v.filler, stamp(v.seed, v.offset/blockSize))
		}
		n := min(len(p), blockSize-at)
		if !bytes.Equal(p[:n], v.filler[at:at+n]) {
			return fmt.Errorf("%w: in the %d bytes from offset %d", errContent, n, v.offset)
		}
		v.offset += uint64(n)
		p = p[n:]
	}
	return nil
}
