package link

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// The handshake of a peer that knows no compression is byte for byte what it was, and nothing is compressed.
func TestOldSidecarWithThisGateway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := Config{Compressor: newCompressor(t), Window: 1 << 20}
		cfg.Accept = func(s *Stream) {
			s.AcceptCompressed()
			_, _ = s.Write(jsonLines(200_000))
			_ = s.CloseWrite()
			_ = s.Wait()
		}
		pair := newMemPair()
		p := &peer{t: t, conn: pair.client}
		accepted := make(chan *Tunnel, 1)
		ran := make(chan error, 1)
		go func() {
			hs, err := Greet(context.Background(), &slowConn{Conn: pair.server, rate: 1 << 20})
			if err != nil {
				ran <- err
				return
			}
			tun, lane, err := hs.Accept(cfg)
			accepted <- tun
			if err == nil {
				err = lane.Run()
			}
			ran <- err
		}()
		p.expect(typeChallenge)
		p.send(header{kind: typeHello}, goldenPayload(t, "hello-new"))
		_, b := p.expect(typeWelcome)
		require.Len(t, b, len(goldenPayload(t, "welcome-new"))-len("gw-0"), "no field that it does not know")
		p.send(header{kind: typeOpen, stream: 1}, goldenPayload(t, "open-plain"))
		h, b := p.expect(typeOpened)
		require.Zero(t, h.flags)
		require.Empty(t, b)
		var got []byte
		for len(got) < 200_000 {
			h, b := p.until(typeData)
			require.Zero(t, h.flags&flagCompressed)
			got = append(got, b...)
		}
		require.True(t, bytes.Equal(jsonLines(200_000), got))
		tun := <-accepted
		require.Zero(t, tun.Stats().Compression)
		tun.Close(nil)
		pair.cut()
		<-ran
		tun.Wait()
	})
}

// goldenPayload is the payload of a golden vector, as it is in its file.
func goldenPayload(t testing.TB, name string) []byte {
	text, err := os.ReadFile("testdata/" + name + ".hex")
	require.NoError(t, err)
	raw, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	require.NoError(t, err)
	return raw[headerSize:]
}

// What this sidecar says to a gateway that knows no compression is what that one knows, and bytes after it, which are ignored.
func TestThisSidecarWithAnOldGateway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		pair := newMemPair()
		p := &peer{t: t, conn: pair.server}
		made := make(chan *Tunnel, 1)
		ran := make(chan error, 1)
		go func() {
			tun, lane, err := Connect(context.Background(), &slowConn{Conn: pair.client, rate: 1 << 20}, Config{Compressor: newCompressor(t), Window: 256 << 10, MaxMessage: 1 << 20})
			made <- tun
			if err == nil {
				err = lane.Run()
			}
			ran <- err
		}()
		p.send(header{kind: typeChallenge}, make([]byte, nonceSize))
		_, b := p.expect(typeHello)
		require.Equal(t, goldenPayload(t, "hello-capable"), b)
		old := goldenPayload(t, "hello-new")
		require.Equal(t, old, b[:len(old)])
		p.send(header{kind: typeWelcome}, goldenPayload(t, "welcome-new"))
		tun := <-made
		s, err := tun.Open(OpenRequest{Route: "logs", Priority: Low, Compression: CompressAuto})
		require.NoError(t, err)
		_, b = p.expect(typeOpen)
		require.Equal(t, goldenPayload(t, "open-compressed"), b)
		old = goldenPayload(t, "open-plain")
		require.Equal(t, old, b[:len(old)])
		p.send(header{kind: typeOpened, stream: 1}, nil)
		require.NoError(t, s.WaitOpened(context.Background()))
		require.False(t, s.Compressed())
		go func() { _, _ = s.Write(jsonLines(200_000)) }()
		var got []byte
		for len(got) < 200_000 {
			h, b := p.until(typeData)
			require.Zero(t, h.flags&flagCompressed)
			got = append(got, b...)
		}
		require.True(t, bytes.Equal(jsonLines(200_000), got))
		// Nor does it let itself be talked into it.
		p.send(header{kind: typeData, flags: flagCompressed, stream: 1}, packedGolden())
		isCode(t, errs.ProtocolViolation, p.end())
		isCode(t, errs.ProtocolViolation, <-ran)
		pair.cut()
		tun.Wait()
	})
}

// compressing plays the sidecar of a tunnel that compresses, with stream 1 open and all that it receives in got.
func compressing(t testing.TB, window int, got *bytes.Buffer, done chan<- struct{}) *played {
	cfg := Config{Compressor: newCompressor(t), Window: window, Accept: func(s *Stream) {
		s.AcceptCompressed()
		if s.ID() == 1 {
			_, _ = got.ReadFrom(s)
			close(done)
		}
		_ = s.CloseWrite()
		_ = s.Wait()
	}}
	p := playSidecarSaying(t, cfg, hello{version: Version, limits: testLimits, caps: canCompress})
	p.send(header{kind: typeOpen, stream: 1}, OpenRequest{Route: "logs", Compression: CompressOn}.append(nil))
	h, _ := p.expect(typeOpened)
	require.Equal(t, uint8(flagCompress), h.flags)
	return p
}

func TestCompressedFramesOfAnotherImplementationAreUnderstood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got bytes.Buffer
		done := make(chan struct{})
		p := compressing(t, minWindow, &got, done)
		text := goldenText()
		p.send(header{kind: typeData, flags: flagCompressed, stream: 1}, packedGolden())
		p.send(header{kind: typeData, stream: 1, offset: uint64(len(text))}, []byte("plain\n"))
		p.send(header{kind: typeData, flags: flagCompressed | flagFin, stream: 1, offset: uint64(len(text) + 6)}, packedGolden())
		<-done
		require.Equal(t, text+"plain\n"+text, got.String())
		require.Equal(t, uint64(2*len(text)), p.tun.Stats().Compression.ReceivedPlain)
		require.Equal(t, uint64(2*len(text)+6), p.tun.Stats().BytesReceived)
		// What is late is dropped, whatever it holds.
		p.until(typeFin)
		p.send(header{kind: typeCredit, flags: flagFin, stream: 1, offset: defaultWindow}, u64(0))
		p.send(header{kind: typeData, flags: flagCompressed, stream: 1, offset: 1 << 60}, packedGolden())
		p.send(header{kind: typePing, offset: 77}, nil)
		for h := (header{}); h.offset != 77; {
			h, _ = p.until(typePong)
		}
		require.NoError(t, p.tun.Err())
		p.stop()
	})
}

// Every frame that is not one whole frame of zstd, with a size in its head that is true and within what the stream may send, ends the
// tunnel; none of them makes anybody hold more than a frame.
//
// Verifies: R4.1
func TestHostileCompressedFramesEndTheTunnel(t *testing.T) {
	const window = 64 << 10
	text := jsonLines(window)
	packed := pack(t, text[:20_000])
	long := pack(t, text)
	unsized, err := zstd.NewWriter(nil, zstd.WithSingleSegment(false))
	require.NoError(t, err)
	var stream bytes.Buffer
	unsized.Reset(&stream)
	_, _ = unsized.Write(text[:5000])
	require.NoError(t, unsized.Flush())
	_, _ = unsized.Write(text[5000:10_000])
	require.NoError(t, unsized.Close())
	bomb := pack(t, make([]byte, MaxPayload))
	huge := append([]byte(nil), 0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0) // 4 GiB, by its head
	for range 1000 {
		huge = append(huge, 0x02, 0, 0x10, 0) // a block that is one byte, 128 KiB times
	}
	lying := func(size uint32) []byte {
		b := bytes.Clone(packed)
		require.Equal(t, byte(0x60), b[4], "a size of 2 bytes")
		b[5], b[6] = byte(size-256), byte((size-256)>>8)
		return b
	}
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-1] = 0 // where a bitstream ends with a bit that is set
	ahead := golden{head: header{offset: 1}, payload: packed}
	for name, g := range map[string]golden{
		"nothing":                {},
		"no zstd":                {payload: text[:100]},
		"cut short":              {payload: packed[:len(packed)-1]},
		"cut within the head":    {payload: packed[:5]},
		"only the head":          {payload: packed[:7]},
		"bytes after it":         {payload: append(bytes.Clone(packed), 0)},
		"two frames":             {payload: append(bytes.Clone(packed), packed...)},
		"an empty frame after":   {payload: append(bytes.Clone(packed), 0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0)},
		"skippable":              {payload: []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}},
		"an empty frame":         {payload: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0}},
		"without a size":         {payload: stream.Bytes()},
		"less than it says":      {payload: lying(20_001)},
		"more than it says":      {payload: lying(19_999)},
		"much more than it says": {payload: append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 100}, bytes.Repeat([]byte{0x02, 0, 0x10, 0}, 5000)...)},
		"damaged":                {payload: flipped},
		"a gap":                  ahead,
		"a wild offset":          {head: header{offset: 1 << 63}, payload: packed},
		"over the credit":        {payload: bomb},
		"a bomb":                 {payload: huge},
		"a dictionary":           {payload: append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 4}, 0x21, 0, 0, 'a', 'b', 'c', 'd')},
		"a reserved block":       {payload: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 0x0f, 0, 0, 'a'}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var got bytes.Buffer
				done := make(chan struct{})
				p := compressing(t, window, &got, done)
				g.head.kind, g.head.flags, g.head.stream = typeData, flagCompressed, 1
				_ = p.try(g.head, g.payload)
				isCode(t, errs.ProtocolViolation, p.end())
				isCode(t, errs.ProtocolViolation, <-p.ran)
				<-done
				require.Zero(t, got.Len())
				p.tun.Wait()
				p.conn.Abort()
			})
		})
	}
	t.Run("again what has come", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			var got bytes.Buffer
			done := make(chan struct{})
			p := compressing(t, window, &got, done)
			for range 2 {
				_ = p.try(header{kind: typeData, flags: flagCompressed, stream: 1}, packed)
			}
			isCode(t, errs.ProtocolViolation, p.end())
			isCode(t, errs.ProtocolViolation, <-p.ran)
			<-done
			p.tun.Wait()
			p.conn.Abort()
		})
	})
	t.Run("a stream that is not compressed", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := playSidecarSaying(t, Config{Compressor: newCompressor(t), Accept: drained}, hello{version: Version, limits: testLimits, caps: canCompress})
			p.send(header{kind: typeOpen, stream: 1}, OpenRequest{Route: "git", Compression: CompressOn}.append(nil))
			h, _ := p.expect(typeOpened)
			require.Zero(t, h.flags, "Accept does not allow it")
			_ = p.try(header{kind: typeData, flags: flagCompressed, stream: 1}, packed)
			isCode(t, errs.ProtocolViolation, p.end())
			isCode(t, errs.ProtocolViolation, <-p.ran)
			p.tun.Wait()
			p.conn.Abort()
		})
	})
	require.Less(t, len(long), window/2)
}

// An OPENED that was lost with its lane is in the SYNC, with what it granted.
func TestTheGrantSurvivesAResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got bytes.Buffer
		done := make(chan struct{})
		p := compressing(t, minWindow, &got, done)
		next, lane, err := p.resume(hello{tunnel: p.tun.ID(), epoch: 2}, p.key)
		require.NoError(t, err)
		ran := run(lane)
		<-p.ran
		_, b := next.expect(typeWelcome)
		w, err := parseWelcome(b)
		require.NoError(t, err)
		require.Equal(t, canCompress, w.caps, "what was agreed on stays so")
		_, b = next.expect(typeSync)
		entries, err := parseSync(b)
		require.NoError(t, err)
		require.Equal(t, []syncEntry{{stream: 1, flags: syncOpened | syncCompress, limit: minWindow}}, entries)
		next.send(header{kind: typeSync, offset: 1}, syncEntry{stream: 1, limit: defaultWindow}.append(nil))
		next.send(header{kind: typeData, flags: flagCompressed | flagFin, stream: 1}, packedGolden())
		<-done
		require.Equal(t, goldenText(), got.String())
		p.tun.Close(nil)
		next.conn.Abort()
		<-ran
		p.tun.Wait()
	})
}

func TestTheSidecarLearnsTheGrantFromSync(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, granted := range []bool{true, false} {
			tun := newTunnel(Config{Compressor: newCompressor(t)}.withDefaults(), true, testLimits)
			tun.agree(canCompress)
			s, err := tun.Open(OpenRequest{Route: "logs", Compression: CompressAuto})
			require.NoError(t, err)
			e := syncEntry{stream: 1, flags: syncOpened, limit: defaultWindow}
			if granted {
				e.flags |= syncCompress
			}
			tun.mu.Lock()
			require.NoError(t, tun.resync([]syncEntry{e}, 1))
			tun.mu.Unlock()
			require.Equal(t, granted, s.Compressed())
			tun.Close(nil)
		}
	})
}
