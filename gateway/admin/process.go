package admin

import (
	"os"
	"runtime"
	"runtime/metrics"
	"time"
)

// ProcessNow tells of this process, which was started at a time.
func ProcessNow(started time.Time) Process {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(samples)
	return Process{PID: os.Getpid(), GoVersion: runtime.Version(), Uptime: time.Since(started).Seconds(), Goroutines: runtime.NumGoroutine(),
		Heap: samples[0].Value.Uint64(), Memory: samples[1].Value.Uint64(), GCs: samples[2].Value.Uint64(), MaxProcs: runtime.GOMAXPROCS(0)}
}
