package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// packedGolden is goldenText as the reference implementation of zstd compresses it (zstd 1.5 -19 --no-check).
func packedGolden() []byte {
	b, _ := hex.DecodeString("28b52ffd601600dd010014027b226e223a302c226d7367223a22736572766564227d0a313233343536373839310ca04078ff77b023ebeb78eaa0a2a8280a85a2b4a65e5606")
	return b
}

func goldenText() string {
	var b strings.Builder
	for i := range 12 {
		fmt.Fprintf(&b, "{\"n\":%d,\"msg\":\"served\"}\n", i)
	}
	return b.String()
}

func newCompressor(t testing.TB) *Compressor {
	c, err := NewCompressor()
	require.NoError(t, err)
	return c
}

// pack is p as a peer compresses it.
func pack(t testing.TB, p []byte) []byte {
	c := newCompressor(t)
	return bytes.Clone(c.encoder().pack(p))
}

func jsonLines(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, `{"time":"2026-05-01T12:%02d:%02d.%06dZ","level":"info","msg":"request served","path":"/api/v1/items/%d","took_ms":%d}`+"\n", i/60%60, i%60, i*7919%1000000, i*104729%50000, i*31%900)
	}
	return b.Bytes()[:n]
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// slowConn is a lane whose network takes rate bytes in a second, on the clock of the bubble, but for a few that it has room for: a
// handshake does not wait for it.
type slowConn struct {
	Conn
	rate int
	wire *atomic.Int64 // bytes that went out
}

func (c *slowConn) Flush() error {
	n := c.Buffered()
	if c.wire != nil {
		c.wire.Add(int64(n))
	}
	if n > 1<<10 {
		pause(time.Duration(n) * time.Second / time.Duration(c.rate))
	}
	return c.Conn.Flush()
}

// slowNetwork is a network whose lanes are slow in both directions.
func slowNetwork(t testing.TB, rate int, server, client Config) (n *network, wire *atomic.Int64) {
	wire = new(atomic.Int64)
	n = memNetwork(t, server, client)
	n.dial = func() (Conn, Conn, func()) {
		p := newMemPair()
		return &slowConn{Conn: p.client, rate: rate, wire: wire}, &slowConn{Conn: p.server, rate: rate}, p.cut
	}
	return n, wire
}

// upload sends content through a slow lane, up and back down, and returns the tunnel's counts, and how many bytes left the sidecar.
func upload(t *testing.T, rate int, wish Compression, content []byte) (stats Stats, onWire int) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		cfg := Config{Compressor: newCompressor(t), Heartbeat: time.Hour}
		gw := cfg
		gw.Accept = func(s *Stream) {
			s.AcceptCompressed()
			got := make([]byte, 0, len(content))
			b := make([]byte, 64<<10)
			for {
				n, err := s.Read(b)
				got = append(got, b[:n]...)
				if err != nil {
					break
				}
			}
			_, _ = s.Write(got)
			_ = s.CloseWrite()
			_ = s.Wait()
		}
		n, wire := slowNetwork(t, rate, gw, cfg)
		tun := n.connect()
		s, err := tun.Open(OpenRequest{Route: "logs", Compression: wish})
		require.NoError(t, err)
		require.NoError(t, s.WaitOpened(context.Background()))
		require.Equal(t, wish != CompressOff, s.Compressed())
		sent := make(chan error, 1)
		go func() {
			_, err := s.Write(content)
			if err == nil {
				err = s.CloseWrite()
			}
			sent <- err
		}()
		var back bytes.Buffer
		_, err = back.ReadFrom(s)
		require.NoError(t, err)
		require.NoError(t, <-sent)
		require.True(t, bytes.Equal(content, back.Bytes()), "other bytes came back")
		require.NoError(t, s.Wait())
		stats, onWire = tun.Stats(), int(wire.Load())
		require.Equal(t, n.gateway().Stats().Compression.SentPlain, stats.Compression.ReceivedPlain)
		require.Equal(t, n.gateway().Stats().Compression.ReceivedPacked, stats.Compression.SentPacked)
		total := cfg.Compressor.Stats()
		require.Equal(t, total.SentPlain, total.ReceivedPlain, "one compressor serves both ends here")
		require.Equal(t, total.SentPacked, total.ReceivedPacked)
		n.finish(tun, before)
	})
	return stats, onWire
}

// Verifies: R7.8
func TestASlowLaneCarriesTextCompressed(t *testing.T) {
	content := jsonLines(1 << 20)
	for _, wish := range []Compression{CompressAuto, CompressOn} {
		stats, wire := upload(t, 2<<20, wish, content)
		c := stats.Compression
		require.Greater(t, c.SentPlain, uint64(len(content)*3/4), "nearly all of it")
		require.Greater(t, c.ReceivedPlain, uint64(len(content)*3/4), "both ways")
		require.Less(t, c.SentPacked, c.SentPlain/4)
		require.Less(t, wire, len(content)/3)
		require.Equal(t, uint64(len(content)), stats.BytesSent, "the stream's bytes are counted as they were written")
		require.Zero(t, c.Vain)
	}
	stats, wire := upload(t, 2<<20, CompressOff, content)
	require.Zero(t, stats.Compression)
	require.Greater(t, wire, len(content))
}

// Verifies: R7.8
func TestWhatDoesNotShrinkIsLeftAlone(t *testing.T) {
	content := noise(4 << 20)
	stats, wire := upload(t, 8<<20, CompressOn, content)
	require.Zero(t, stats.Compression.SentPlain)
	require.Zero(t, stats.Compression.ReceivedPlain)
	require.NotZero(t, stats.Compression.Vain, "it was tried")
	require.Less(t, stats.Compression.Vain, uint64(len(content)/4), "and not often")
	require.Less(t, wire, len(content)+len(content)/100)
}

// A stream that changes its content changes what becomes of it.
func TestAMixedStreamIsCompressedWhereItShrinks(t *testing.T) {
	content := bytes.Join([][]byte{noise(500 << 10), jsonLines(1 << 20), noise(500 << 10), jsonLines(1 << 20)}, nil)
	stats, _ := upload(t, 4<<20, CompressOn, content)
	require.Greater(t, stats.Compression.SentPlain, uint64(1<<20))
	require.Less(t, stats.Compression.SentPlain, uint64(2<<20+256<<10))
	require.Less(t, stats.Compression.SentPacked, stats.Compression.SentPlain/3)
	require.Less(t, stats.Compression.Vain, uint64(600<<10))
}

// Verifies: R7.8
func TestALaneThatIsFasterThanCompressingIsNotSlowedDown(t *testing.T) {
	stats, _ := upload(t, 2<<30, CompressOn, jsonLines(2<<20))
	require.Zero(t, stats.Compression.SentPlain+stats.Compression.Vain, "%+v", stats.Compression)
}

// What somebody types goes as it is, also when it would shrink.
func TestSmallFramesAreNotCompressed(t *testing.T) {
	lane := meter{bytes: 1, spent: time.Second}
	var p packing
	require.False(t, p.wants(1<<20, &lane), "not agreed on")
	p.start()
	require.False(t, p.wants(packPending-1, &lane))
	require.True(t, p.wants(packPending, &lane))
	require.False(t, p.wants(packPending, &meter{}), "nothing is known of the lane")
}

func TestTriesInVainBecomeRare(t *testing.T) {
	lane := meter{bytes: 1, spent: time.Second}
	var p packing
	p.start()
	tries, sent := 0, 0
	for sent < 1<<30 {
		if p.wants(1<<20, &lane) {
			tries++
			p.tried(MaxPayload, MaxPayload, time.Millisecond)
		} else {
			p.passed(MaxPayload)
		}
		sent += MaxPayload
	}
	require.Less(t, tries, 40)
	require.Greater(t, tries, 16, "it is tried again")
	p.skip = 0
	p.tried(MaxPayload, MaxPayload/10, time.Millisecond)
	require.True(t, p.wants(1<<20, &lane))
	require.Equal(t, packStretch, p.stretch)
	p.tried(MaxPayload, MaxPayload, time.Millisecond)
	require.Equal(t, packPause, p.skip, "one try in vain after a success costs little")
	require.Equal(t, 1, p.stretch)
}

// A compressor that was slow once, or whose lane was fast, is tried again after a while.
func TestWhatCompressingBringsIsForgotten(t *testing.T) {
	lane := meter{bytes: 10 << 20, spent: time.Second}
	var p packing
	p.start()
	require.True(t, p.wants(1<<20, &lane))
	slow := func() {
		for p.wants(1<<20, &lane) {
			p.tried(MaxPayload, MaxPayload/2, 100*time.Millisecond) // no processor has time for it
		}
	}
	after := func() (sent int) {
		for ; !p.wants(1<<20, &lane); sent += MaxPayload {
			p.passed(MaxPayload)
			require.Less(t, sent, 2*packMaxPause)
		}
		return sent
	}
	for want := packForget; want <= 4*packForget; want *= 2 {
		slow()
		require.InDelta(t, want, after(), MaxPayload)
	}
	for range packWorth {
		p.tried(MaxPayload, MaxPayload/2, time.Millisecond)
	}
	slow()
	require.InDelta(t, packForget, after(), MaxPayload)
}

func TestAMeterForgets(t *testing.T) {
	var m meter
	m.add(64<<10, 5*time.Second) // a stall
	for range 40 {
		m.add(64<<10, 100*time.Microsecond)
	}
	require.False(t, m.slower(&meter{bytes: 150 << 20, spent: time.Second}, packMargin), "%+v", m)
	m.add(64<<10, time.Hour)
	require.True(t, m.slower(&meter{bytes: 150 << 20, spent: time.Second}, packMargin))
}

func TestCompressionsHaveNames(t *testing.T) {
	for _, c := range []Compression{CompressOff, CompressAuto, CompressOn} {
		parsed, err := ParseCompression(c.String())
		require.NoError(t, err)
		require.Equal(t, c, parsed)
	}
	parsed, err := ParseCompression("")
	require.NoError(t, err)
	require.Equal(t, CompressAuto, parsed)
	_, err = ParseCompression("zstd")
	require.ErrorContains(t, err, "auto, on and off")
	require.Equal(t, "compression 9", Compression(9).String())
	o, err := parseOpen(append(OpenRequest{Route: "git"}.append(nil), 9))
	require.NoError(t, err)
	require.Equal(t, CompressOff, o.Compression, "a wish of a later version is none")
}

// When all encoders are in use nobody waits for one.
func TestABusyCompressorIsNotWaitedFor(t *testing.T) {
	c := newCompressor(t)
	var taken []*encoder
	for e := c.encoder(); e != nil; e = c.encoder() {
		taken = append(taken, e)
	}
	require.Len(t, taken, cap(c.encoders))
	tun, l, s := bare(t, true)
	tun.cfg.Compressor, tun.packs = c, true
	s.packing.start()
	var out outgoing
	out.payload = jsonLines(10_000)
	out.packed = packed{stream: s, plain: 10_000}
	header{kind: typeData, stream: 1}.put(&out.head)
	require.NoError(t, l.write(&out))
	require.Zero(t, out.head[1]&flagCompressed)
	require.Zero(t, c.Stats())
	out.packed.note()
	require.Equal(t, 10_000, s.packing.plain)
	c.giveBack(taken[0])
	out.packed = packed{stream: s, plain: 10_000}
	require.NoError(t, l.write(&out))
	require.NotZero(t, out.head[1]&flagCompressed)
	require.Equal(t, uint64(10_000), c.Stats().SentPlain)
	tun.Close(nil)
}

func TestMetricsOfCompression(t *testing.T) {
	c := newCompressor(t)
	c.count.sent(1000, 300, false, time.Second)
	c.count.sent(500, 500, true, time.Second)
	c.count.received(200, 900, 3*time.Second)
	var b bytes.Buffer
	c.WriteMetrics(&b, "x")
	require.Equal(t, `x_compression_plain_bytes_total{direction="sent"} 1000
x_compression_plain_bytes_total{direction="received"} 900
x_compression_packed_bytes_total{direction="sent"} 300
x_compression_packed_bytes_total{direction="received"} 200
x_compression_vain_bytes_total 500
x_compression_seconds_total{direction="sent"} 2
x_compression_seconds_total{direction="received"} 3
`, b.String())
}

// FuzzUnpack: no compressed payload makes the decoder panic, or write past the size that was announced; what it accepts is what
// an unbounded decoder makes of it.
func FuzzUnpack(f *testing.F) {
	f.Add(packedGolden())
	f.Add(pack(f, jsonLines(3000)))
	f.Add(pack(f, make([]byte, 40_000)))
	f.Add(pack(f, noise(2000)))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 100, 0x02, 0, 0x10, 0})
	c := newCompressor(f)
	reference, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, frame []byte) {
		size, err := unpackedSize(frame)
		if err != nil {
			require.ErrorIs(t, err, errs.ProtocolViolation)
			return
		}
		require.Positive(t, size)
		require.LessOrEqual(t, size, MaxPayload)
		dst := bytes.Repeat([]byte{0xa5}, size+64)
		err = c.unpack(dst[:size], frame)
		require.Equal(t, bytes.Repeat([]byte{0xa5}, 64), dst[size:], "written past the end")
		if err != nil {
			require.ErrorIs(t, err, errs.ProtocolViolation)
			return
		}
		want, err := reference.DecodeAll(frame, nil)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, dst[:size]))
	})
}
