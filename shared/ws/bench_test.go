package ws_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
)

// BenchmarkOpens opens, uses and closes streams from 64 openers over one lane: 64 bytes there and back each.
func BenchmarkOpens(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(map[bool]string{false: "tcp", true: "tls"}[secure], func(b *testing.B) {
			tun := tunnel(b, secure, link.Config{}, func(s *link.Stream) {
				s.Accept()
				p := make([]byte, 64)
				if _, err := io.ReadFull(s, p); err == nil {
					_, _ = s.Write(p)
				}
				_ = s.CloseWrite()
				_, _ = s.Read(p)
				_ = s.Wait()
			})
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range 64 {
				wg.Go(func() {
					p := make([]byte, 64)
					for left.Add(-1) >= 0 {
						s, err := tun.Open(link.OpenRequest{Route: "echo"})
						if err != nil {
							b.Error(err)
							return
						}
						_, _ = s.Write(p)
						_ = s.CloseWrite()
						if _, err := io.ReadFull(s, p); err != nil {
							b.Error(err)
							return
						}
						_, _ = s.Read(p)
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "opens/s")
		})
	}
}

// BenchmarkBulk sends from one side to the other over one lane.
func BenchmarkBulk(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(map[bool]string{false: "tcp", true: "tls"}[secure], func(b *testing.B) {
			done := make(chan struct{})
			tun := tunnel(b, secure, link.Config{}, func(s *link.Stream) {
				defer close(done)
				p := make([]byte, 128<<10)
				for {
					if _, err := s.Read(p); err != nil {
						break
					}
				}
				_ = s.CloseWrite()
				_ = s.Wait()
			})
			s, err := tun.Open(link.OpenRequest{Route: "sink"})
			require.NoError(b, err)
			b.SetBytes(link.MaxPayload)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				for left := link.MaxPayload; left > 0; {
					room, err := s.WaitRoom()
					require.NoError(b, err)
					n := min(room, left)
					require.NoError(b, s.SendBuffer(link.GetBuffer(n), n))
					left -= n
				}
			}
			_ = s.CloseWrite()
			_, _ = s.Read(make([]byte, 1)) // the end
			<-done
		})
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// contents are what large transfers are made of.
func contents(b *testing.B) map[string][]byte {
	var logs bytes.Buffer
	for i := 0; logs.Len() < 8<<20; i++ {
		fmt.Fprintf(&logs, `{"time":"2026-05-01T%02d:%02d:%02d.%06dZ","level":"%s","msg":"request served","method":"GET","path":"/api/v1/items/%d","status":%d,"took_us":%d,"trace":"%016x"}`+"\n",
			i/3600%24, i/60%60, i%60, i*7919%1000000, []string{"info", "info", "warn", "debug"}[i*31%4], i*104729%50000, []int{200, 200, 404, 500}[i*17%4], i*31%90000, uint64(i)*0x9E3779B97F4A7C15)
	}
	var text []byte
	for _, name := range []string{"../link/PROTOCOL.md", "../link/recv.go", "../link/lane.go", "../../CHANGELOG.md", "../../README.md", "dial.go", "../../gateway/server/server.go"} {
		p, err := os.ReadFile(name)
		require.NoError(b, err)
		text = append(text, p...)
	}
	noise := make([]byte, 8<<20)
	rand.Read(noise)
	return map[string][]byte{"text": text, "logs": logs.Bytes(), "random": noise}
}

// BenchmarkCompression sends text, logs in JSON and random bytes over lanes of several rates, with compression off and on. The
// processor's time is that of both ends.
func BenchmarkCompression(b *testing.B) {
	compressor, err := link.NewCompressor()
	require.NoError(b, err)
	all := contents(b)
	for _, rate := range []int{0, 125 << 20, 12 << 20, 1 << 20} {
		for _, name := range []string{"text", "logs", "random"} {
			for _, wish := range []link.Compression{link.CompressOff, link.CompressOn} {
				path := "fast"
				if rate > 0 {
					path = fmt.Sprintf("%dMiBps", rate>>20)
				}
				b.Run(path+"/"+name+"/"+wish.String(), func(b *testing.B) { bulk(b, compressor, rate, wish, all[name]) })
			}
		}
	}
}

func bulk(b *testing.B, compressor *link.Compressor, rate int, wish link.Compression, content []byte) {
	tcp := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil || rate == 0 {
			return c, err
		}
		return &slowTCP{Conn: c, rate: rate}, nil
	}
	done := make(chan struct{})
	tun := tunnelOver(b, true, link.Config{Compressor: compressor}, func(s *link.Stream) {
		defer close(done)
		s.AcceptCompressed()
		p := make([]byte, 128<<10)
		for {
			if _, err := s.Read(p); err != nil {
				break
			}
		}
		_ = s.CloseWrite()
		_ = s.Wait()
	}, tcp)
	s, err := tun.Open(link.OpenRequest{Route: "sink", Compression: wish})
	require.NoError(b, err)
	require.NoError(b, s.WaitOpened(context.Background()))
	b.SetBytes(link.MaxPayload)
	b.ReportAllocs()
	b.ResetTimer()
	before, at := cpuTime(), 0
	for range b.N {
		for left := link.MaxPayload; left > 0; {
			room, err := s.WaitRoom()
			require.NoError(b, err)
			buf := link.GetBuffer(min(room, left))
			n := copy(buf.Bytes()[:min(room, left)], content[at:])
			if at += n; at == len(content) {
				at = 0
			}
			require.NoError(b, s.SendBuffer(buf, n))
			left -= n
		}
	}
	_ = s.CloseWrite()
	_, _ = s.Read(make([]byte, 1)) // the end
	<-done
	total := float64(b.N) * link.MaxPayload
	b.ReportMetric((cpuTime()-before).Seconds()/total*(1<<30), "cpu-s/GiB")
	c := tun.Stats().Compression
	b.ReportMetric((total-float64(c.SentPlain)+float64(c.SentPacked))/total, "wire/plain")
}
