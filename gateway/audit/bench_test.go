package audit

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func BenchmarkRecord(b *testing.B) {
	for _, sync := range []string{SyncNone, SyncInterval, SyncAlways} {
		b.Run(sync, func(b *testing.B) {
			l := open(b, filepath.Join(b.TempDir(), "audit.jsonl"), func(c *Config) { c.Sync = sync })
			e := sample()
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Record(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRecordFrom64(b *testing.B) {
	for _, sync := range []string{SyncNone, SyncInterval, SyncAlways} {
		b.Run(sync, func(b *testing.B) {
			l := open(b, filepath.Join(b.TempDir(), "audit.jsonl"), func(c *Config) { c.Sync = sync })
			e := sample()
			b.ReportAllocs()
			b.SetParallelism(32) // times two processors
			var failed atomic.Bool
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if l.Record(e) != nil {
						failed.Store(true)
					}
				}
			})
			require.False(b, failed.Load())
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	file := filepath.Join(b.TempDir(), "audit.jsonl")
	l := open(b, file)
	const lines = 10_000
	for range lines {
		require.NoError(b, l.Record(sample()))
	}
	shut(b, l)
	for b.Loop() {
		requireOK(b, file)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/lines, "ns/line")
}
