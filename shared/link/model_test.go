package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

// plan is what one stream of the model does. Both ends derive it from the route, which carries its number.
type plan struct {
	up, down           int // bytes
	upPiece, downPiece int
	readUp, readDown   int // size of reads
	prio               Priority
	resetAt            int           // the client resets after sending so much; -1: never
	refuse             bool          // the gateway refuses
	pause              time.Duration // of the gateway's reader, after the first read
	replyFirst         bool          // the gateway sends before it reads; else it reads everything first
	wish               Compression
	grant              bool
}

func drawPlan(rt *rapid.T, i int) plan {
	label := func(s string) string { return fmt.Sprintf("%s%d", s, i) }
	size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 70_000), rapid.IntRange(0, 3_000_000), rapid.IntRange(200_000, 600_000))
	piece := rapid.OneOf(rapid.IntRange(1, 64), rapid.IntRange(1_000, 200_000))
	p := plan{up: size.Draw(rt, label("up")), down: size.Draw(rt, label("down")), upPiece: piece.Draw(rt, label("upPiece")), downPiece: piece.Draw(rt, label("downPiece")),
		readUp: rapid.IntRange(500, 300_000).Draw(rt, label("readUp")), readDown: rapid.IntRange(500, 300_000).Draw(rt, label("readDown")),
		prio: Priority(rapid.IntRange(0, 2).Draw(rt, label("prio"))), resetAt: -1,
		pause: time.Duration(rapid.IntRange(0, 3000).Draw(rt, label("pause"))) * time.Millisecond, replyFirst: rapid.Bool().Draw(rt, label("replyFirst")),
		wish: Compression(rapid.IntRange(0, compressions-1).Draw(rt, label("wish"))), grant: rapid.IntRange(0, 4).Draw(rt, label("grant")) > 0}
	if p.upPiece < 64 {
		p.up %= 5_000
	}
	if p.downPiece < 64 {
		p.down %= 5_000
	}
	switch rapid.IntRange(0, 9).Draw(rt, label("fate")) {
	case 0:
		p.resetAt = rapid.IntRange(0, p.up).Draw(rt, label("resetAt"))
	case 1:
		p.refuse = true
	}
	return p
}

// gatewaySide serves a stream as planned.
func (p plan) gatewaySide(s *Stream, seed uint64) {
	if p.refuse {
		s.Reset(errs.New(errs.RouteForbidden, "not for you"))
		return
	}
	s.accept(p.grant)
	var wg sync.WaitGroup
	sent := func() { _ = sendAll(s, seed+1, p.down, p.downPiece) }
	if p.replyFirst {
		wg.Go(sent)
	}
	<-time.After(p.pause)
	if readAll(s, seed, p.up, p.readUp) == nil && !p.replyFirst {
		sent()
	}
	wg.Wait()
	_ = s.Wait()
}

// clientSide runs a stream as planned and says what went wrong.
func (p plan) clientSide(s *Stream, seed uint64) error {
	sending := make(chan error, 1)
	go func() {
		if p.resetAt >= 0 {
			pat, b := pattern{seed: seed}, make([]byte, p.resetAt)
			pat.fill(b)
			_, _ = s.Write(b)
			s.Reset(errs.New(errs.Canceled, "changed my mind"))
			sending <- nil
			return
		}
		sending <- sendAll(s, seed, p.up, p.upPiece)
	}()
	err := readAll(s, seed+1, p.down, p.readDown)
	sendErr := <-sending
	switch {
	case p.refuse:
		if !errors.Is(err, errs.RouteForbidden) && p.resetAt < 0 {
			return fmt.Errorf("refused stream ended with %v", err)
		}
		return nil
	case p.resetAt >= 0:
		if !errors.Is(s.Wait(), errs.Canceled) {
			return fmt.Errorf("reset stream ended with %v", s.Wait())
		}
		return nil
	case err != nil:
		return fmt.Errorf("reading: %w", err)
	case sendErr != nil:
		return fmt.Errorf("sending: %w", sendErr)
	}
	return s.Wait()
}

// The model: random streams over a lane that breaks at random points, within messages, handshakes and resumes. Every byte
// arrives once and in order, every stream ends on both sides, nothing stays behind. Lanes are slow, so that streams that may be
// are compressed, or fast; what streams carry shrinks in parts, or not.
//
// Verifies: R1.7, R10.5, R10.6
func TestModelRandomStreamsOverBreakingLanes(t *testing.T) {
	var total CompressionStats
	rapid.Check(t, func(rt *rapid.T) {
		plans := make([]plan, rapid.IntRange(1, 12).Draw(rt, "streams"))
		for i := range plans {
			plans[i] = drawPlan(rt, i)
		}
		seed := rapid.Uint64().Draw(rt, "seed")
		cuts := rapid.IntRange(0, 30).Draw(rt, "cuts")
		window := rapid.SampledFrom([]int{4 << 10, 64 << 10, 256 << 10}).Draw(rt, "window")
		rate := rapid.SampledFrom([]int{0, 20 << 20, 2 << 20, 500 << 10}).Draw(rt, "rate")
		capable := rapid.IntRange(0, 11).Draw(rt, "capable") // 0: the sidecar is not, 1: the gateway is not
		synctest.Test(t, func(t *testing.T) {
			c := runModel(t, plans, seed, cuts, window, rate, capable)
			total.SentPlain, total.SentPacked, total.Vain = total.SentPlain+c.SentPlain, total.SentPacked+c.SentPacked, total.Vain+c.Vain
			if capable < 2 {
				require.Zero(t, c)
			}
		})
	})
	require.NotZero(t, total.SentPlain, "the model compresses")
	require.NotZero(t, total.Vain)
	require.Less(t, total.SentPacked, total.SentPlain*3/4)
}

// runModel returns what was compressed. A rate of 0 is a lane without a limit.
func runModel(t *testing.T, plans []plan, seed uint64, cuts, window, rate, capable int) CompressionStats {
	before := held.Load()
	rng := rand.New(rand.NewPCG(seed, 1))
	cfg := Config{Window: window, MaxWindow: 1 << 20, Memory: 4 << 20, Heartbeat: 10 * time.Second}
	compressor := newCompressor(t)
	cfg.Compressor = compressor
	gwCfg := cfg
	switch capable {
	case 0:
		cfg.Compressor = nil
	case 1:
		gwCfg.Compressor = nil
	}
	gwCfg.Accept = func(s *Stream) {
		i, _ := strconv.Atoi(s.Request().Route)
		plans[i].gatewaySide(s, uint64(i)*2)
	}
	n := memNetwork(t, gwCfg, cfg)
	n.dial = func() (Conn, Conn, func()) {
		p := newMemPair()
		if n.count < cuts { // these lanes break by themselves, after some bytes, some of them in the handshake; or go silent
			p.client.out.budget = 1 + rng.IntN(400_000)
			p.client.in.budget = 1 + rng.IntN(400_000)
			if rng.IntN(4) == 0 {
				p.client.out.budget = 1 + rng.IntN(200)
			}
			if rng.IntN(6) == 0 {
				delay := time.Duration(rng.IntN(2000)) * time.Millisecond
				time.AfterFunc(delay, p.stall)
			}
		}
		if rate > 0 {
			return &slowConn{Conn: p.client, rate: rate}, &slowConn{Conn: p.server, rate: rate}, p.cut
		}
		return p.client, p.server, p.cut
	}
	tun := n.connect()
	var wg sync.WaitGroup
	failures := make([]error, len(plans))
	for i, p := range plans {
		wg.Go(func() {
			s, err := tun.Open(OpenRequest{Route: strconv.Itoa(i), Priority: p.prio, Compression: p.wish})
			if err == nil {
				err = p.clientSide(s, uint64(i)*2)
			}
			failures[i] = err
		})
	}
	wg.Wait()
	for i, err := range failures {
		require.NoError(t, err, "stream %d %+v", i, plans[i])
	}
	waitForgotten(t, tun)
	waitForgotten(t, n.gateway())
	n.finish(tun, before)
	return compressor.Stats()
}

// waitForgotten returns once the tunnel has forgotten its streams.
func waitForgotten(t *testing.T, tun *Tunnel) {
	t.Helper()
	for i := 0; tun.Stats().Streams > 0; i++ {
		require.Less(t, i, 1000, "streams are never forgotten: %+v", tun.Stats())
		<-time.After(100 * time.Millisecond) // the clock of synctest
	}
}
