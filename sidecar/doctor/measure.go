package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	randv2 "math/rand/v2"
	"slices"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

const (
	pings        = 10
	transferSize = 1 << 20 // bytes, each way
	pieceSize    = 32 << 10
)

// older is what is said where the gateway has no probe.
const older = "not tested: the gateway is older than the probe"

// measure tries the way to the gateway with bytes that the gateway returns.
func (p *path) measure(c *carrier) {
	if !p.roundTrip(c) {
		for _, h := range []string{HopTransfer, HopThroughput} {
			p.r.skipFor(h, p.target, older)
		}
		return
	}
	works := p.r.probe(HopTransfer, p.target, func(ctx context.Context, res *Result) error {
		return p.transfer(ctx, c, res, transferSize)
	})
	switch {
	case p.r.routed:
	case p.r.cfg.Size <= 0:
		p.r.skipFor(HopThroughput, p.target, "not asked for: --throughput SIZE")
	case !works:
		p.r.skip(HopThroughput, p.target, HopTransfer)
	default:
		p.r.probeWithin(link.ProbeTime, HopThroughput, p.target, func(ctx context.Context, res *Result) error {
			return p.transfer(ctx, c, res, p.r.cfg.Size)
		})
	}
}

// roundTrip times echoes. It returns false when the gateway does not know the probe.
func (p *path) roundTrip(c *carrier) (known bool) {
	known = true
	p.r.probe(HopRoundTrip, p.target, func(ctx context.Context, res *Result) error {
		s, err := c.open(ctx, link.ProbeRoute, link.Normal)
		if errors.Is(err, errs.RouteUnknown) || errors.Is(err, errs.RouteForbidden) {
			known = false
			c.tunnelRTT(res)
			return nil
		}
		if err != nil {
			return limited(res, err)
		}
		defer s.abort()
		stop := context.AfterFunc(ctx, s.abort)
		defer stop()
		times := make([]time.Duration, 0, pings)
		var buf [8]byte
		for i := range pings + 1 {
			var sent [8]byte
			binary.BigEndian.PutUint64(sent[:], uint64(i))
			start := time.Now()
			if _, err := s.Write(sent[:]); err != nil {
				return inTime(ctx, err)
			}
			if _, err := io.ReadFull(s, buf[:]); err != nil {
				return inTime(ctx, err)
			}
			if buf != sent {
				return errs.New(errs.ProtocolViolation, "echo %d came back as other bytes", i)
			}
			if i > 0 { // the first one warms the way up
				times = append(times, time.Since(start))
			}
		}
		describeTimes(res, times)
		return nil
	})
	return known
}

// tunnelRTT is the next best thing.
func (c *carrier) tunnelRTT(res *Result) {
	if c.tunnel == nil || c.tunnel.Stats().RTT == 0 {
		res.Status = Skipped
		res.say(older)
		return
	}
	rtt := c.tunnel.Stats().RTT
	res.Data["rtt_ms"] = millis(rtt)
	res.say("%s, by the tunnel's own measure; the gateway is older than the probe", ms(rtt))
}

func describeTimes(res *Result, times []time.Duration) {
	slices.Sort(times)
	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	least, mean, p95 := times[0], sum/time.Duration(len(times)), times[(len(times)*95+99)/100-1]
	res.Data["echoes"], res.Data["min_ms"], res.Data["avg_ms"], res.Data["p95_ms"] = len(times), millis(least), millis(mean), millis(p95)
	res.say("%d echoes: min %s, avg %s, p95 %s", len(times), ms(least), ms(mean), ms(p95))
}

// transfer sends bytes and compares what comes back, byte by byte and by hash.
func (p *path) transfer(ctx context.Context, c *carrier, res *Result, n int64) error {
	s, err := c.open(ctx, link.ProbeRoute, link.Low)
	if err != nil {
		return limited(res, err)
	}
	defer s.abort()
	stop := context.AfterFunc(ctx, s.abort)
	defer stop()
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails
	out, in := sha256.New(), sha256.New()
	sent := make(chan error, 1)
	start := time.Now()
	go func() { sent <- send(s, seed, n, out) }()
	received, differs, err := compare(s, seed, n, in)
	took := time.Since(start)
	if err != nil {
		s.abort() // so that the sender ends
	}
	sendErr := <-sent
	res.Data["bytes"], res.Data["returned"] = n, received
	if sendErr != nil {
		return inTime(ctx, sendErr)
	}
	if err != nil {
		return inTime(ctx, err)
	}
	sum, back := hex.EncodeToString(out.Sum(nil)), hex.EncodeToString(in.Sum(nil))
	res.Data["sha256_sent"], res.Data["sha256_returned"] = sum, back
	rate := float64(n) / took.Seconds()
	res.Data["bytes_per_second"] = int64(rate)
	if differs >= 0 || sum != back {
		res.Data["first_difference"] = differs
		return errs.New(errs.ProtocolViolation, "bytes were changed on the way: the first at offset %d", differs)
	}
	res.say("%s there and back, every byte the same; %s/s each way", size(n), size(int64(rate)))
	return nil
}

// send writes n bytes of the sequence that seed begins, which no compression makes smaller.
func send(w io.Writer, seed [32]byte, n int64, sum hash.Hash) error {
	source, buf := randv2.NewChaCha8(seed), make([]byte, pieceSize)
	for n > 0 {
		piece := buf[:min(n, pieceSize)]
		_, _ = source.Read(piece) // never fails
		sum.Write(piece)
		if _, err := w.Write(piece); err != nil {
			return err
		}
		n -= int64(len(piece))
	}
	return nil
}

// compare reads n bytes and returns how many came, and the offset of the first that is not the sequence's; -1: none.
func compare(r io.Reader, seed [32]byte, n int64, sum hash.Hash) (got, differs int64, err error) {
	source, buf, want := randv2.NewChaCha8(seed), make([]byte, pieceSize), make([]byte, pieceSize)
	differs = -1
	for got < n {
		piece := buf[:min(n-got, pieceSize)]
		read, err := io.ReadFull(r, piece)
		piece = piece[:read]
		_, _ = source.Read(want[:read]) // never fails
		sum.Write(piece)
		if differs < 0 && !bytes.Equal(piece, want[:read]) {
			for i := range piece {
				if piece[i] != want[i] {
					differs = got + int64(i)
					break
				}
			}
		}
		got += int64(read)
		if err != nil {
			return got, differs, fmt.Errorf("after %d of %d bytes: %w", got, n, err)
		}
	}
	return got, differs, nil
}

// limited makes a refusal for want of room a warning: it says nothing against the way.
func limited(res *Result, err error) error {
	switch errs.CodeOf(err) {
	case errs.StreamLimit, errs.OpenRate, errs.MemoryLimit, errs.Overloaded:
		res.Status = Warn
		res.failed(err)
		res.Detail = "not tested now: " + res.Detail
		return nil
	}
	return err
}

// inTime says that time was over where an error comes from having given up.
func inTime(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errs.Wrap(errs.LaneDead, err, "not done in time")
	}
	return err
}
