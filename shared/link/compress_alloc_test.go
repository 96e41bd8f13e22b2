package link

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// sunkConn takes whatever is written.
type sunkConn struct {
	Conn
	wrote int
}

func (c *sunkConn) Write(head, payload []byte) error {
	c.wrote += len(head) + len(payload)
	return nil
}

func (c *sunkConn) Buffered() int { return 0 }
func (c *sunkConn) Abort()        {}

// Compressing a frame allocates nothing, whether it shrinks or not.
func TestCompressingAllocatesNothing(t *testing.T) {
	tun, l, s := bare(t, true)
	defer tun.Close(nil)
	tun.cfg.Compressor, tun.packs = newCompressor(t), true
	s.packing.start()
	conn := &sunkConn{}
	l.conn = conn
	for name, content := range map[string][]byte{"text": jsonLines(MaxPayload), "noise": noise(MaxPayload), "small": jsonLines(packLeast)} {
		for range cap(tun.cfg.Compressor.encoders) { // each takes its memory when it is first used
			e := tun.cfg.Compressor.encoder()
			e.pack(content)
			tun.cfg.Compressor.giveBack(e)
		}
		var out outgoing
		allocs := testing.AllocsPerRun(100, func() {
			header{kind: typeData, stream: 1}.put(&out.head)
			out.payload = content
			out.packed = packed{stream: s, plain: len(content)}
			if err := l.write(&out); err != nil || out.packed.size == 0 {
				t.Fatal(err)
			}
			out.packed.note()
		})
		require.Zero(t, allocs, name)
	}
	require.NotZero(t, conn.wrote)
}

// Taking a compressed frame allocates nothing, but for the buffer from the pool.
func TestDecompressingAllocatesNothing(t *testing.T) {
	tun, l, s := bare(t, false)
	defer tun.Close(nil)
	c := newCompressor(t)
	tun.cfg.Compressor, tun.packs = c, true
	s.packing.start()
	content := jsonLines(100_000)
	frame, plain := pack(t, content), make([]byte, len(content))
	h := header{kind: typeData, flags: flagCompressed, stream: 1}
	for range cap(c.decoders) { // each takes its memory when it is first used
		require.NoError(t, c.unpack(plain, frame))
	}
	allocs := testing.AllocsPerRun(100, func() {
		size, err := unpackedSize(frame)
		if wanted, broken := l.wantsPacked(&h, size); !wanted || err != nil || broken != nil {
			t.Fatal(err, broken)
		}
		clear(plain)
		if err := c.unpack(plain[:size], frame); err != nil {
			t.Fatal(err)
		}
	})
	require.True(t, bytes.Equal(content, plain))
	if !raced { // zstd has pools
		require.Zero(t, allocs)
	}
}
