package link

import (
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/klauspost/compress/zstd"

	"fairlead/shared/errs"
)

// Compression is what is wished for a stream.
type Compression uint8

// The wishes. Whatever is wished, bytes that do not shrink go as they are, and so do all on a lane that is faster than
// compressing.
const (
	CompressOff  Compression = iota
	CompressAuto             // the gateway decides, by the route
	CompressOn

	compressions = 3
)

// String is the wish's name in configuration.
func (c Compression) String() string {
	switch c {
	case CompressOff:
		return "off"
	case CompressAuto:
		return "auto"
	case CompressOn:
		return "on"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// ParseCompression reads a name in configuration; the empty one is CompressAuto.
func ParseCompression(s string) (Compression, error) {
	switch s {
	case "off":
		return CompressOff, nil
	case "auto", "":
		return CompressAuto, nil
	case "on":
		return CompressOn, nil
	}
	return CompressOff, fmt.Errorf("compression %q: allowed are auto, on and off", s)
}

// CompressionStats counts what compression did. Bytes are payload, without headers.
type CompressionStats struct {
	SentPlain      uint64        // bytes that were sent compressed, before
	SentPacked     uint64        // and after
	Vain           uint64        // bytes that were tried and sent as they are, because they did not shrink
	ReceivedPacked uint64        // bytes that came compressed, before they were decompressed
	ReceivedPlain  uint64        // and after
	Packing        time.Duration // spent compressing, by the clock, what was in vain included
	Unpacking      time.Duration // spent decompressing
}

// compressionCounters are CompressionStats that several goroutines count.
type compressionCounters struct {
	sentPlain, sentPacked, vain, receivedPacked, receivedPlain atomic.Uint64
	packing, unpacking                                         atomic.Int64
}

func (c *compressionCounters) sent(plain, packed int, vain bool, spent time.Duration) {
	c.packing.Add(int64(spent))
	if vain {
		c.vain.Add(uint64(plain))
		return
	}
	c.sentPlain.Add(uint64(plain))
	c.sentPacked.Add(uint64(packed))
}

func (c *compressionCounters) received(packed, plain int, spent time.Duration) {
	c.receivedPacked.Add(uint64(packed))
	c.receivedPlain.Add(uint64(plain))
	c.unpacking.Add(int64(spent))
}

func (c *compressionCounters) stats() CompressionStats {
	return CompressionStats{SentPlain: c.sentPlain.Load(), SentPacked: c.sentPacked.Load(), Vain: c.vain.Load(),
		ReceivedPacked: c.receivedPacked.Load(), ReceivedPlain: c.receivedPlain.Load(),
		Packing: time.Duration(c.packing.Load()), Unpacking: time.Duration(c.unpacking.Load())}
}

// Compressor compresses and decompresses for all tunnels of a process, as many frames at once as there are processors. Its
// memory, about 1.5 MiB for each of them, is taken when it is first used.
type Compressor struct {
	encoders chan *encoder
	decoders chan *zstd.Decoder
	count    compressionCounters
}

// packWindow is how far back a frame refers to itself, bytes. A frame refers to no other.
const packWindow = 128 << 10

// encoder is what one goroutine compresses with. out is where it puts the result.
type encoder struct {
	zstd *zstd.Encoder
	out  []byte
}

// packOverhead is more than zstd adds to bytes that do not shrink.
const packOverhead = 64

// NewCompressor makes a Compressor.
func NewCompressor() (*Compressor, error) {
	n := runtime.GOMAXPROCS(0)
	c := &Compressor{encoders: make(chan *encoder, n), decoders: make(chan *zstd.Decoder, n)}
	for range n {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(packWindow),
			zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false), // the lane has integrity
			zstd.WithAllLitEntropyCompression(true)) // else base64 would not shrink
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "making a zstd encoder")
		}
		c.encoders <- &encoder{zstd: e}
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packWindow),
			zstd.WithDecoderMaxMemory(MaxPayload), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "making a zstd decoder")
		}
		c.decoders <- d
	}
	return c, nil
}

// Stats is the sum over all tunnels, also those that are over.
func (c *Compressor) Stats() CompressionStats { return c.count.stats() }

// WriteMetrics writes Stats as counters, whose names begin with prefix: for metrics.Set.RegisterMetricsWriter.
func (c *Compressor) WriteMetrics(w io.Writer, prefix string) {
	s := c.Stats()
	prefix += "_compression_"
	metrics.WriteCounterUint64(w, prefix+`plain_bytes_total{direction="sent"}`, s.SentPlain)
	metrics.WriteCounterUint64(w, prefix+`plain_bytes_total{direction="received"}`, s.ReceivedPlain)
	metrics.WriteCounterUint64(w, prefix+`packed_bytes_total{direction="sent"}`, s.SentPacked)
	metrics.WriteCounterUint64(w, prefix+`packed_bytes_total{direction="received"}`, s.ReceivedPacked)
	metrics.WriteCounterUint64(w, prefix+`vain_bytes_total`, s.Vain)
	metrics.WriteCounterFloat64(w, prefix+`seconds_total{direction="sent"}`, s.Packing.Seconds())
	metrics.WriteCounterFloat64(w, prefix+`seconds_total{direction="received"}`, s.Unpacking.Seconds())
}

// encoder takes an encoder, or nil when all are in use: to compress then would be to wait for a processor.
func (c *Compressor) encoder() *encoder {
	select {
	case e := <-c.encoders:
		return e
	default:
		return nil
	}
}

func (c *Compressor) giveBack(e *encoder) { c.encoders <- e }

// pack compresses p into one frame of zstd, which is valid until the encoder is used again.
func (e *encoder) pack(p []byte) []byte {
	if e.out == nil {
		e.out = make([]byte, 0, MaxPayload+packOverhead)
	}
	return e.zstd.EncodeAll(p, e.out)
}

// unpack decompresses one frame of zstd into dst, whose length it must have. It waits for a decoder.
func (c *Compressor) unpack(dst, frame []byte) error {
	d := <-c.decoders
	defer func() { c.decoders <- d }()
	out, err := d.DecodeAll(frame, dst[:0:len(dst)])
	switch {
	case err != nil:
		return errs.Wrap(errs.ProtocolViolation, err, "compressed DATA of %d bytes", len(frame))
	case len(out) != len(dst):
		return violation("compressed DATA of %d bytes, which should hold %d", len(out), len(dst))
	}
	return nil
}

// Blocks of zstd (RFC 8878 section 3.1.1.2).
const (
	blockHeaderSize = 3
	blockRLE        = 1 // its content is one byte, repeated
	blockReserved   = 3
	checksumSize    = 4
)

// unpackedSize is how many bytes a frame of zstd says that it holds. What comes from a peer must be one frame, and nothing after
// it, that needs no dictionary and says a size that a DATA frame can have.
func unpackedSize(p []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(p); err != nil {
		return 0, errs.Wrap(errs.ProtocolViolation, err, "compressed DATA of %d bytes", len(p))
	}
	switch {
	case h.Skippable || h.DictionaryID != 0 || !h.HasFCS:
		return 0, violation("compressed DATA that is skippable, needs a dictionary or does not say its size")
	case h.FrameContentSize == 0 || h.FrameContentSize > MaxPayload:
		return 0, violation("compressed DATA that holds %d bytes; allowed are 1 to %d", h.FrameContentSize, MaxPayload)
	}
	end, err := blocksEnd(p, h.HeaderSize)
	if err != nil {
		return 0, err
	}
	if h.HasCheckSum {
		end += checksumSize
	}
	if end != len(p) {
		return 0, violation("compressed DATA of %d bytes, whose frame has %d", len(p), end)
	}
	return int(h.FrameContentSize), nil
}

// blocksEnd is where the blocks of a frame end that begin at offset at.
func blocksEnd(p []byte, at int) (int, error) {
	for {
		if len(p)-at < blockHeaderSize {
			return 0, violation("compressed DATA of %d bytes, which ends within a block", len(p))
		}
		head := int(p[at]) | int(p[at+1])<<8 | int(p[at+2])<<16
		size := head >> 3
		switch head >> 1 & 3 {
		case blockRLE:
			size = 1
		case blockReserved:
			return 0, violation("compressed DATA with a block of a reserved type")
		}
		at += blockHeaderSize + size
		if head&1 != 0 {
			return at, nil
		}
	}
}
