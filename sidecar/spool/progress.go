package spool

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
)

// A progress file says how far a connection was delivered: two slots that are written in turn, so that a write which is
// torn leaves the other one. The higher turn counts.
//
//	slot: "FLprog1\x00", turn u64, acked u64, flags u64, 0 …, crc u32 at 60
const (
	slotSize   = 64
	slotMagic  = "FLprog1\x00"
	flagGone   = 1 // delivered or dropped: what is left of it is to be removed
	flagSalved = 2 // a person decided that it is delivered as far as it is valid
)

// progress is the content of a slot.
type progress struct {
	turn  uint64
	acked uint64 // the peer has consumed everything below
	flags uint64
}

func (p progress) encode() []byte {
	b := make([]byte, slotSize)
	copy(b, slotMagic)
	binary.BigEndian.PutUint64(b[8:], p.turn)
	binary.BigEndian.PutUint64(b[16:], p.acked)
	binary.BigEndian.PutUint64(b[24:], p.flags)
	binary.BigEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func decodeProgress(b []byte) (p progress) {
	for ; len(b) >= slotSize; b = b[slotSize:] {
		slot := b[:slotSize]
		turn := binary.BigEndian.Uint64(slot[8:])
		if string(slot[:8]) != slotMagic || binary.BigEndian.Uint32(slot[60:]) != crc32.Checksum(slot[:60], castagnoli) || turn < p.turn {
			continue
		}
		p = progress{turn: turn, acked: binary.BigEndian.Uint64(slot[16:]), flags: binary.BigEndian.Uint64(slot[24:])}
	}
	return p
}

func progressFile(dir string, id ID) string { return filepath.Join(dir, id.String()+".ack") }

// readProgress reads a progress file. One that is missing or damaged is no progress: bytes are then delivered again.
func readProgress(dir string, id ID) progress {
	b, err := os.ReadFile(progressFile(dir, id))
	if err != nil || len(b) > 2*slotSize {
		return progress{}
	}
	return decodeProgress(b)
}

// write puts p, with the next turn, into the slot whose turn it is.
func (p *progress) write(dir string, id ID) error {
	f, err := os.OpenFile(progressFile(dir, id), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	p.turn++
	_, err = f.WriteAt(p.encode(), int64(p.turn%2)*slotSize)
	return err
}
