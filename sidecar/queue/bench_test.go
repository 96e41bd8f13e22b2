package queue_test

import (
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/queue"
)

// BenchmarkEnterWithATunnel is what every connection pays while nobody waits.
func BenchmarkEnterWithATunnel(b *testing.B) {
	q := queue.New(queue.Config{Size: 100, Wait: time.Minute, Pressure: 80, Rate: 100, Metrics: metrics.NewSet()})
	open := func() error { return nil }
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if t, err := q.Enter(link.Normal, open); t != nil || err != nil {
				b.Fatal("it had to wait")
			}
		}
	})
}

// BenchmarkWaitAndRelease is a place taken and released in a queue of a thousand.
func BenchmarkWaitAndRelease(b *testing.B) {
	q := queue.New(queue.Config{Size: 2000, Wait: time.Hour, Pressure: 80, Metrics: metrics.NewSet()})
	up := false // guarded by the queue, which calls open under its lock
	down := errs.New(errs.NoTunnel, "down")
	open := func() error {
		if up {
			return nil
		}
		return down
	}
	b.ReportAllocs()
	for b.Loop() {
		up = false
		tickets := make([]*queue.Ticket, 1000)
		for i := range tickets {
			tickets[i], _ = q.Enter(link.Priority(i%3), open)
		}
		up = true
		q.Release()
		for _, t := range tickets {
			if err := t.Wait(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/connection")
}
