package chaos

import (
	"runtime"

	"go.uber.org/goleak"
)

// heapSlack is what the heap may have grown by when everything is over: caches of libraries that keep what they have.
const heapSlack = 16 << 20

// baseline is what the process had before a run.
type baseline struct {
	goroutines int
	heap       uint64
	ignore     []goleak.Option
}

func takeBaseline() baseline {
	return baseline{runtime.NumGoroutine(), liveHeap(), append(Permanent(), goleak.IgnoreCurrent())}
}

// Permanent are the goroutines of libraries that outlive what started them, to be ignored by who looks for leaks: hystrix
// never ends those of a circuit; fasthttp has one for the process, which keeps the date, and one for each stopped server,
// which ends only when its sleep is over.
func Permanent() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	}
}

// liveHeap is what is reachable. What a sync.Pool holds survives one collection, but not two.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// compare says what a run left behind.
func (b baseline) compare(r *Result) {
	if err := goleak.Find(b.ignore...); err != nil {
		r.fail("goroutines left behind: %v", err)
	}
	r.Goroutines = [2]int{b.goroutines, runtime.NumGoroutine()}
	r.Heap = [2]uint64{b.heap, liveHeap()}
	if r.Heap[1] > b.heap+heapSlack {
		r.fail("the heap has grown from %d to %d bytes", r.Heap[0], r.Heap[1])
	}
}
