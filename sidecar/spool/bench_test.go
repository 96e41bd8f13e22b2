package spool

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReceive is accepting a connection of 64 MiB and keeping it, by policy, on the disk under TMPDIR. The sender's
// share of the CPU time is in it.
func BenchmarkReceive(b *testing.B) {
	key := filepath.Join(b.TempDir(), "key")
	require.NoError(b, os.WriteFile(key, content(1, keySize), 0o600))
	for _, fsync := range []string{FsyncNever, FsyncInterval, FsyncAlways} {
		for _, keyFile := range []string{"", key} {
			b.Run(fmt.Sprintf("fsync=%s/encrypted=%v", fsync, keyFile != ""), func(b *testing.B) {
				benchReceive(b, fsync, keyFile)
			})
		}
	}
}

func benchReceive(b *testing.B, fsync, keyFile string) {
	const size = 64 << 20
	r := newRig(b, func(c *Config) { c.Fsync, c.Size, c.KeyFile, c.Interval = fsync, 1<<40, keyFile, 100*time.Millisecond })
	r.cfg.Stream = func(context.Context, link.OpenRequest) (*link.Stream, error) {
		return nil, errs.New(errs.NoTunnel, "none")
	}
	r.restart()
	r.start()
	data := content(1, 1<<20)
	b.SetBytes(size)
	start := cpu()
	for b.Loop() {
		s := benchDial(b, r)
		for range size / len(data) {
			_, err := s.Write(data)
			require.NoError(b, err)
		}
		require.NoError(b, s.finish())
		require.NoError(b, <-s.done)
		s.Close()
		b.StopTimer()
		for _, it := range r.List() {
			require.NoError(b, r.Drop(it.ID))
		}
		b.StartTimer()
	}
	b.ReportMetric((cpu()-start).Seconds()/(float64(b.N)*size/(1<<30)), "CPU-s/GiB")
}

func benchDial(b *testing.B, r *rig) *sender {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(b, err)
	far, err := l.Accept()
	require.NoError(b, err)
	s := &sender{Conn: c, done: make(chan error, 1)}
	go func() {
		_, err := r.Accept(context.Background(), far, origin, nil)
		s.done <- err
	}()
	return s
}

// BenchmarkSmall is a connection of 200 bytes from accept to acknowledgement, 32 at a time.
func BenchmarkSmall(b *testing.B) {
	for _, fsync := range []string{FsyncNever, FsyncInterval, FsyncAlways} {
		b.Run("fsync="+fsync, func(b *testing.B) {
			r := newRig(b, func(c *Config) { c.Fsync, c.Connections, c.Interval = fsync, 1<<30, 50*time.Millisecond })
			r.cfg.Stream = func(context.Context, link.OpenRequest) (*link.Stream, error) {
				return nil, errs.New(errs.NoTunnel, "none")
			}
			r.restart()
			r.start()
			data := content(1, 200)
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					s := benchDial(b, r)
					_, _ = s.Write(data)
					_ = s.finish()
					if err := <-s.done; err != nil {
						b.Error(err)
					}
					s.Close()
				}
			})
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
		})
	}
}

// BenchmarkRead is reading a spooled connection for delivery, checked.
func BenchmarkRead(b *testing.B) {
	key := filepath.Join(b.TempDir(), "key")
	require.NoError(b, os.WriteFile(key, content(1, keySize), 0o600))
	for _, keyFile := range []string{"", key} {
		b.Run(fmt.Sprintf("encrypted=%v", keyFile != ""), func(b *testing.B) {
			r := newRig(b, func(c *Config) { c.KeyFile = keyFile })
			rec := r.send(origin, content(1, 32<<20))
			r.mu.Lock()
			v := r.view(r.byID[rec.ID])
			r.mu.Unlock()
			buf := make([]byte, link.MaxPayload)
			b.SetBytes(32 << 20)
			for b.Loop() {
				rd := newReader(v, place{})
				for {
					if _, err := rd.Read(buf); err == io.EOF {
						break
					} else if err != nil {
						b.Fatal(err)
					}
				}
				rd.close()
			}
		})
	}
}
