package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// Each breach of the rules ends the tunnel with a protocol error, which the peer is told in the close frame, and no other
// tunnel notices.
//
// Verifies: R4.1, R6.7
func TestBreachesEndTheTunnelLoudly(t *testing.T) {
	big := uint64(1) << 63
	for name, frames := range map[string][]golden{
		"gap":                        {{head: header{kind: typeData, stream: 1, offset: 1}, payload: []byte("x")}},
		"forged offset":              {{head: header{kind: typeData, stream: 1, offset: ^uint64(0)}, payload: []byte("xyz")}},
		"data over the limit":        {{head: header{kind: typeData, stream: 1}, payload: make([]byte, minWindow+1)}},
		"data after the end":         {{head: header{kind: typeData, flags: flagFin, stream: 2}, payload: []byte("x")}, {head: header{kind: typeData, stream: 2}, payload: []byte("xy")}},
		"two ends":                   {{head: header{kind: typeFin, stream: 2}}, {head: header{kind: typeFin, stream: 2, offset: 1}}},
		"end before the data":        {{head: header{kind: typeFin, stream: 1, offset: 10}}},
		"end over the limit":         {{head: header{kind: typeFin, stream: 1, offset: big}}},
		"credit without payload":     {{head: header{kind: typeCredit, stream: 1, offset: 10}}},
		"credit below consumed":      {{head: header{kind: typeCredit, stream: 2, offset: 0}, payload: u64(3)}},
		"credit that shrinks":        {{head: header{kind: typeCredit, stream: 1, offset: defaultWindow - 1}, payload: u64(0)}},
		"consumed that shrinks":      {{head: header{kind: typeCredit, stream: 2, offset: defaultWindow}, payload: u64(2)}, {head: header{kind: typeCredit, stream: 2, offset: defaultWindow}, payload: u64(1)}},
		"consumed what was not sent": {{head: header{kind: typeCredit, stream: 1, offset: big}, payload: u64(4)}},
		"end consumed, not sent":     {{head: header{kind: typeCredit, flags: flagFin, stream: 2, offset: defaultWindow}, payload: u64(3)}},
		"stream never opened":        {{head: header{kind: typeData, stream: 99}, payload: []byte("x")}},
		"stream zero":                {{head: header{kind: typeOpen}, payload: openPayload("git")}},
		"open without a route":       {{head: header{kind: typeOpen, stream: 9}, payload: OpenRequest{}.append(nil)}},
		"open with a long route":     {{head: header{kind: typeOpen, stream: 9}, payload: openPayload(strings.Repeat("r", maxRoute+1))}},
		"open of a wild priority":    {{head: header{kind: typeOpen, stream: 9}, payload: OpenRequest{Route: "git", Priority: 3}.append(nil)}},
		"open cut short":             {{head: header{kind: typeOpen, stream: 9}, payload: openPayload("git")[:3]}},
		"opened by the sidecar":      {{head: header{kind: typeOpened, stream: 1}}},
		"goaway by the sidecar":      {{head: header{kind: typeGoAway}, payload: GoAway{Reason: refusal}.append(nil)}},
		"goaway cut short":           {{head: header{kind: typeGoAway}}},
		"reset cut short":            {{head: header{kind: typeReset, stream: 1}, payload: []byte{1}}},
		"end of the tunnel, short":   {{head: header{kind: typeReset}, payload: []byte{1}}},
		"auth without a token":       {{head: header{kind: typeAuth}}},
		"auth with an answer":        {{head: header{kind: typeAuth, flags: flagAnswer}, payload: make([]byte, 8)}},
		"huge token":                 {{head: header{kind: typeAuth}, payload: make([]byte, maxToken+1)}},
		"sync without a resume":      {{head: header{kind: typeSync}}},
		"second hello":               {{head: header{kind: typeHello}, payload: hello{version: 1, limits: testLimits}.append(nil)}},
		"unknown type":               {{head: header{kind: 0x7F}}},
		"payload over the greatest":  {{head: header{kind: typeData, stream: 1}, payload: make([]byte, MaxPayload+1)}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				shared := NewBudget(1<<30, nil)
				cfg := Config{Window: minWindow, Budget: shared, Accept: func(s *Stream) {
					s.Accept()
					_, _ = s.Write([]byte("abc"))
					_ = s.Wait()
				}}
				other := playSidecar(t, cfg)
				defer other.stop()
				p := playSidecar(t, cfg)
				for id := uint32(1); id <= 2; id++ {
					p.send(header{kind: typeOpen, stream: id}, openPayload("git"))
					p.until(typeData)
				}
				for _, f := range frames {
					_ = p.try(f.head, f.payload)
				}
				told := p.end()
				isCode(t, errs.ProtocolViolation, told)
				isCode(t, errs.ProtocolViolation, <-p.ran)
				isCode(t, errs.ProtocolViolation, p.tun.Err())
				code, reason := errs.CloseFrame(p.tun.Err())
				require.Equal(t, errs.CloseProtocol, code)
				require.Greater(t, len(reason), len("FL-P501 "))
				p.tun.Wait()
				p.conn.Abort()
				require.Zero(t, shared.Used())

				other.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
				other.until(typeData)
				require.NoError(t, other.tun.Err())
			})
		})
	}
}

// The same from a gateway.
func TestBreachesOfAGateway(t *testing.T) {
	for name, g := range map[string]golden{
		"open":                  {head: header{kind: typeOpen, stream: 2}, payload: openPayload("git")},
		"auth without answer":   {head: header{kind: typeAuth}, payload: []byte("token")},
		"auth answer cut short": {head: header{kind: typeAuth, flags: flagAnswer}},
		"reserved bits":         {head: header{kind: typePing}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := playGateway(t, Config{})
				m := g.message()
				if name == "reserved bits" {
					m[3] = 1
				}
				require.NoError(t, p.conn.Write(m, nil))
				require.NoError(t, p.conn.Flush())
				isCode(t, errs.ProtocolViolation, p.end())
				isCode(t, errs.ProtocolViolation, <-p.ran)
				p.conn.Abort()
				p.tun.Wait()
			})
		})
	}
}

// What is unusual but allowed changes nothing.
func TestWhatIsAllowedToAPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: func(s *Stream) { s.Accept(); _ = s.Wait() }})
		p.send(header{kind: typeOpen, stream: 1}, append(openPayload("git"), "fields of a later version"...))
		p.expect(typeOpened)
		p.send(header{kind: typeIgnorable | 1, stream: 7}, []byte("a frame of a later version"))
		p.send(header{kind: typeIgnorable | 1, stream: 7}, make([]byte, MaxPayload+1000))
		p.send(header{kind: typePong, offset: 99}, nil)
		p.send(header{kind: typeCredit, stream: 1, offset: ^uint64(0)}, u64(0)) // the own bound holds
		p.send(header{kind: typeData, stream: 1}, nil)
		p.send(header{kind: typeData, stream: 1}, []byte("abc"))
		p.send(header{kind: typeData, stream: 1}, []byte("abcdef")) // again, with more
		p.send(header{kind: typeReset, flags: flagAck, stream: 1}, nil)
		synctest.Wait()
		require.NoError(t, p.tun.Err())
		require.Equal(t, uint64(6), p.tun.Stats().BytesReceived)
		p.stop()
	})
}

// A breach in SYNC ends the tunnel.
func TestBreachesInSync(t *testing.T) {
	many := make([]byte, 0, 1100*syncEntrySize)
	for i := range uint32(1100) {
		many = syncEntry{stream: i + 1}.append(many)
	}
	for name, frames := range map[string][]golden{
		"frames before it":       {{head: header{kind: typeData, stream: 1}, payload: []byte("x")}},
		"half an entry":          {{head: header{kind: typeSync}, payload: make([]byte, syncEntrySize-1)}},
		"consumed over received": {{head: header{kind: typeSync, offset: 1}, payload: syncEntry{stream: 1, consumed: 2, received: 1, limit: 9}.append(nil)}},
		"received over sent":     {{head: header{kind: typeSync, offset: 1}, payload: syncEntry{stream: 1, received: 4, limit: defaultWindow}.append(nil)}},
		"end that was not sent":  {{head: header{kind: typeSync, offset: 1}, payload: syncEntry{stream: 1, flags: syncFinReceived, received: 2, limit: defaultWindow}.append(nil)}},
		"credit below the old":   {{head: header{kind: typeSync, offset: 1}, payload: syncEntry{stream: 1, limit: 1}.append(nil)}},
		"far too many streams":   {{head: header{kind: typeSync, flags: flagMore}, payload: many}, {head: header{kind: typeSync, flags: flagMore}, payload: many}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := playSidecar(t, Config{MaxStreams: 4, Accept: func(s *Stream) {
					s.Accept()
					_, _ = s.Write([]byte("abc"))
					_ = s.Wait()
				}})
				p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
				p.until(typeData)
				next, lane, err := p.resume(hello{tunnel: p.tun.ID(), epoch: 2}, p.key)
				require.NoError(t, err)
				ran := run(lane)
				for _, f := range frames {
					_ = next.try(f.head, f.payload)
				}
				isCode(t, errs.ProtocolViolation, next.end())
				isCode(t, errs.ProtocolViolation, <-ran)
				p.conn.Abort()
				next.conn.Abort()
				<-p.ran
				p.tun.Wait()
			})
		})
	}
}

// A stream that the gateway claims to have finished, though it cannot have, ends with a code that says that it was lost.
func TestStreamThatThePeerLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: func(s *Stream) { s.Accept(); _ = s.Wait() }})
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		p.until(typeOpened)
		p.tun.mu.Lock()
		s := p.tun.streams[1]
		p.tun.mu.Unlock()
		next, lane, err := p.resume(hello{tunnel: p.tun.ID(), epoch: 2}, p.key)
		require.NoError(t, err)
		ran := run(lane)
		next.send(header{kind: typeSync, offset: 1}, nil)
		isCode(t, errs.TunnelLost, s.Wait())
		require.NoError(t, p.tun.Err())
		p.tun.Close(nil)
		p.conn.Abort()
		next.conn.Abort()
		<-ran
		<-p.ran
		p.tun.Wait()
	})
}

// OPENs over the limit are refused one by one; a peer that goes on without taking the answers is cut off. Neither makes the
// gateway hold more than twice its limit.
//
// Verifies: R4.1
func TestFloodOfOpens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		served := 0
		p := playSidecar(t, Config{MaxStreams: 10, Accept: func(s *Stream) {
			mu.Lock()
			served++
			mu.Unlock()
			_ = s.Wait()
		}})
		for id := range uint32(11) {
			p.send(header{kind: typeOpen, stream: id + 1}, openPayload("git"))
		}
		h, b := p.expect(typeReset)
		require.Equal(t, uint32(11), h.stream)
		f := fields{b: b}
		isCode(t, errs.StreamLimit, f.failure())
		for id := range uint32(1000) {
			if p.try(header{kind: typeOpen, stream: id + 12}, openPayload("git")) != nil {
				break
			}
		}
		isCode(t, errs.ProtocolViolation, p.end())
		isCode(t, errs.ProtocolViolation, <-p.ran)
		p.conn.Abort()
		p.tun.Wait()
		require.Equal(t, 10, served)
		require.LessOrEqual(t, p.tun.Stats().Opened, uint64(20))
	})
}

// RESETs and PINGs without end make the gateway hold nothing, or end the tunnel, also when the answers are not taken.
func TestFloodsOfResetsAndPings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{MaxStreams: 10})
		out := p.conn.(*memConn).in
		out.mu.Lock()
		out.stalled = true // the gateway's answers are not taken
		out.mu.Unlock()
		for range 10_000 {
			p.send(header{kind: typePing}, nil)
		}
		for id := range uint32(10_000) {
			if p.try(header{kind: typeReset, stream: id + 1}, appendFailure(nil, refusal)) != nil {
				break
			}
		}
		isCode(t, errs.ProtocolViolation, <-p.ran)
		require.LessOrEqual(t, cap(p.tun.sched.resetAcks), 128)
		p.conn.Abort()
		p.tun.Wait()
	})
}

// Streams whose receivers take nothing are reset when too much waits for them, instead of the process growing.
func TestTooMuchWaitingForReceivers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Memory: 300 << 10, Accept: func(s *Stream) { _ = s.Wait() }})
		for id := range uint32(4) {
			p.send(header{kind: typeOpen, stream: id + 1}, openPayload("git"))
			p.send(header{kind: typeData, stream: id + 1}, make([]byte, 100<<10))
			p.send(header{kind: typeData, stream: id + 1, offset: 100 << 10}, make([]byte, 100<<10))
			p.send(header{kind: typeData, stream: id + 1, offset: 200 << 10}, make([]byte, 56<<10))
		}
		h, b := p.expect(typeReset)
		f := fields{b: b}
		isCode(t, errs.MemoryLimit, f.failure())
		require.Equal(t, uint32(3), h.stream)
		synctest.Wait()
		p.tun.mu.Lock()
		require.LessOrEqual(t, p.tun.waiting, int64(2*300<<10+MaxPayload))
		p.tun.mu.Unlock()
		p.stop()
	})
}

// sink is a destination that panics where it is told to, or blocks until it is aborted.
type sink struct {
	mu      sync.Mutex
	got     []byte
	panics  string
	aborted chan error
}

func newSink(panics string) *sink { return &sink{panics: panics, aborted: make(chan error, 1)} }

func (k *sink) fault(where string) {
	if k.panics == where {
		panic("a fault in " + where)
	}
}

func (k *sink) Write(p []byte) (int, error) {
	k.fault("Write")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.got = append(k.got, p...)
	return len(p), nil
}

func (k *sink) CloseWrite() error { k.fault("CloseWrite"); return nil }

func (k *sink) Abort(err error) {
	k.aborted <- err
	k.fault("Abort")
}

type trySink struct{ *sink }

func (k trySink) TryWrite(p []byte) (int, error) { k.fault("TryWrite"); return k.Write(p) }

// A panic in a stream's handler or sink, wherever it is, ends this stream alone, with its stack in the log.
//
// Verifies: R2.4
func TestPanicInAStreamEndsOnlyThisStream(t *testing.T) {
	for _, where := range []string{"handler", "Write", "CloseWrite", "Abort", "try TryWrite", "try Write", "try CloseWrite", "try Abort"} {
		t.Run(where, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var log bytes.Buffer
				where, try := strings.CutPrefix(where, "try ")
				p := playSidecar(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), Accept: func(s *Stream) {
					if s.Request().Route == "good" {
						drained(s)
						return
					}
					s.Accept()
					if where == "handler" {
						panic("a fault in handler")
					}
					k := newSink(where)
					if try {
						s.SetSink(trySink{k})
					} else {
						s.SetSink(k)
					}
					_ = s.Wait()
				}})
				p.send(header{kind: typeOpen, stream: 1}, openPayload("good"))
				p.until(typeOpened)
				p.send(header{kind: typeOpen, stream: 2}, openPayload("bad"))
				if where != "handler" {
					p.until(typeOpened)
					synctest.Wait()
				}
				if where == "Abort" {
					p.send(header{kind: typeReset, stream: 2}, appendFailure(nil, refusal))
				} else {
					p.send(header{kind: typeData, flags: flagFin, stream: 2}, []byte("x"))
				}
				h, b := p.until(typeReset)
				require.Equal(t, uint32(2), h.stream)
				if where != "Abort" {
					f := fields{b: b}
					isCode(t, errs.Panicked, f.failure())
					p.send(header{kind: typeReset, flags: flagAck, stream: 2}, nil)
				}
				p.send(header{kind: typeData, flags: flagFin, stream: 1}, []byte("still here"))
				h, _ = p.until(typeCredit)
				require.Equal(t, uint32(1), h.stream)
				p.stop()
				require.Contains(t, log.String(), "a fault in "+where)
				require.Contains(t, log.String(), "hostile_test.go", "the stack")
			})
		})
	}
}

// faultyConn panics when the lane's writer, or a sender in its place, writes what is for streams.
type faultyConn struct {
	Conn
	kind frameType
}

func (c faultyConn) Write(head, payload []byte) error {
	if frameType(head[0]) == c.kind {
		panic("a fault in the connection")
	}
	return c.Conn.Write(head, payload)
}

// A fault in the lane itself costs the lane, whoever was writing to it, not the process, the tunnel or a stream.
func TestPanicInALaneCostsTheLane(t *testing.T) {
	for _, kind := range []frameType{typeOpen, typeData} {
		bubble(t, func(t *testing.T) {
			p := playGatewayOver(t, Config{}, func(c Conn) Conn { return faultyConn{c, kind} })
			s, err := p.tun.Open(OpenRequest{Route: "git"})
			require.NoError(t, err)
			pause(time.Second)
			_, err = s.Write(make([]byte, 100_000)) // large: the sender writes it to the lane itself
			require.NoError(t, err)
			isCode(t, errs.Panicked, <-p.ran)
			require.NoError(t, p.tun.Err())
			require.Equal(t, 1, p.tun.Stats().Streams)
			p.tun.Close(nil)
			p.tun.Wait()
		})
	}
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{GoAway: func(GoAway) { panic("a fault in a callback") }})
		p.send(header{kind: typeGoAway}, GoAway{Reason: refusal}.append(nil))
		isCode(t, errs.Panicked, <-p.ran)
		require.NoError(t, p.tun.Err())
		p.tun.Close(nil)
		p.tun.Wait()
	})
}

// A sink that is set late gets what has come, one that is set on a stream that failed is aborted, and one whose destination
// fails resets the stream.
func TestSinks(t *testing.T) {
	for _, try := range []bool{true, false} {
		t.Run(fmt.Sprint(try), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				accepted := make(chan *Stream, 3)
				p := playSidecar(t, Config{Accept: func(s *Stream) { accepted <- s; _ = s.Wait() }})
				set := func(s *Stream, k *sink) {
					if try {
						s.SetSink(trySink{k})
					} else {
						s.SetSink(k)
					}
				}
				p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
				p.send(header{kind: typeData, flags: flagFin, stream: 1}, []byte("early"))
				s := <-accepted
				synctest.Wait()
				k := newSink("")
				set(s, k)
				h, _ := p.expect(typeCredit)
				require.Equal(t, uint8(flagFin), h.flags)
				require.Equal(t, "early", string(k.got))

				p.send(header{kind: typeOpen, stream: 2}, openPayload("git"))
				s = <-accepted
				p.send(header{kind: typeReset, stream: 2}, appendFailure(nil, refusal))
				isCode(t, errs.OpenRate, s.Wait())
				k = newSink("")
				set(s, k)
				isCode(t, errs.OpenRate, <-k.aborted)
				p.stop()
			})
		})
	}
}

// The context of an open ends with its stream.
func TestOpeningEndsWithTheStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ended := make(chan error, 1)
		p := playSidecar(t, Config{Accept: func(s *Stream) {
			ctx, stop := s.Opening(t.Context())
			<-ctx.Done()
			stop()
			ended <- s.Wait()
			ctx, stop = s.Opening(t.Context())
			<-ctx.Done()
			stop()
		}})
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		pause(time.Second)
		p.send(header{kind: typeReset, stream: 1}, appendFailure(nil, refusal))
		isCode(t, errs.OpenRate, <-ended)
		p.stop()
	})
}
