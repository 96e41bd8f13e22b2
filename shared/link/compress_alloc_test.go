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

// Taking a compressed frame allocates nothing.
func TestDecompressingAllocatesNothing(t *testing.T) {
	tun, l, s := bare(t, false)
	defer tun.Close(nil)
	tun.cfg.Compressor, tun.packs = newCompressor(t), true
	s.req.Compression = CompressOn
	s.packing.start()
	sink := &nullSink{}
	s.SetSink(sink)
	const size = 100_000
	message := append(make([]byte, headerSize), pack(t, jsonLines(size))...)
	var out outgoing
	scratch := make([]byte, 0, 512)
	h := header{kind: typeData, flags: flagCompressed, stream: 1}
	r := bytes.NewReader(nil)
	allocs := testing.AllocsPerRun(100, func() {
		h.put((*[headerSize]byte)(message))
		r.Reset(message)
		if err := l.readFrame(r); err != nil {
			t.Fatal(err)
		}
		h.offset += size
		tun.mu.Lock()
		for tun.nextControl(&out, scratch) {
		}
		tun.mu.Unlock()
	})
	require.LessOrEqual(t, allocs, 1.0, "the header, which any frame that is read costs")
	require.Equal(t, 101*size, sink.n)
}
