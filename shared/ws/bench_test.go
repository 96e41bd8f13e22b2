package ws_test

import (
	"io"
	"sync"
	"sync/atomic"
	"testing"

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
