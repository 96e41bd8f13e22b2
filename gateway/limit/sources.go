package limit

import (
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// busySamples is how many samples in a row of a source of CPU count: a burst of a second or two is no shortage.
const busySamples = 3

// Sources are the sources of the process, as far as the system has them: memory, the scheduler, and the quota of CPU that
// its control group has. Their thresholds are where a process that goes on as it does is near its end, not where it is
// merely busy.
func Sources() []Source { return sources(os.DirFS("/")) }

func sources(files fs.FS) []Source {
	groups := newCgroups(files)
	all := []Source{
		{Name: "memory", Thresholds: Thresholds{0.80, 0.90, 0.95}, Read: (&memorySource{groups: groups}).read},
		{Name: "scheduler", Thresholds: Thresholds{0.1, 0.3, 1}, Samples: busySamples, Read: new(schedulerSource).read},
	}
	if _, err := groups.stalled(); err == nil {
		all = append(all, Source{Name: "cpu_stalled", Thresholds: Thresholds{0.3, 0.6, 0.9}, Samples: busySamples, Read: (&stallSource{groups: groups}).read})
	}
	if _, _, err := groups.throttled(); err == nil {
		all = append(all, Source{Name: "cpu_throttled", Thresholds: Thresholds{0.6, 0.85, 0.97}, Samples: busySamples, Read: (&throttleSource{groups: groups}).read})
	}
	return all
}

// memorySource is the part that is in use of GOMEMLIMIT or of the control group's limit, whichever is nearer.
//
// What the collector can free is no shortage while a limit makes it run in time, so against GOMEMLIMIT only what was alive
// at the last collection counts, with the stacks. Against a control group it counts too if GOMEMLIMIT does not lie below
// the group's limit: then nothing makes the collector run before the kernel kills the process.
type memorySource struct {
	groups  *cgroups
	samples []metrics.Sample
}

// The order of memorySource's samples.
const (
	liveHeap = iota
	heapObjects
	heapFree // not in use, and not given back to the system either
	stacks
)

func (m *memorySource) read() (float64, error) {
	if m.samples == nil {
		m.samples = []metrics.Sample{liveHeap: {Name: "/gc/heap/live:bytes"}, heapObjects: {Name: "/memory/classes/heap/objects:bytes"},
			heapFree: {Name: "/memory/classes/heap/free:bytes"}, stacks: {Name: "/memory/classes/heap/stacks:bytes"}}
	}
	metrics.Read(m.samples)
	bytes := func(i int) float64 { return float64(m.samples[i].Value.Uint64()) }
	part, soft := 0.0, debug.SetMemoryLimit(-1)
	if soft < math.MaxInt64 {
		part = (bytes(liveHeap) + bytes(stacks)) / float64(soft)
	}
	used, limit, err := m.groups.memory()
	if err != nil { // no limit
		return part, nil
	}
	if float64(soft) <= limit {
		used -= max(bytes(heapObjects)-bytes(liveHeap), 0) + bytes(heapFree)
	}
	return max(part, used/limit), nil // part is never negative
}

// schedulerSource is how long goroutines waited for a CPU since the last sample, in seconds, 99th percentile.
type schedulerSource struct {
	sample []metrics.Sample
	before []uint64
}

// leastWaits is how many waits a percentile needs to mean something. The runtime times one wait in eight, and a process
// that gets little CPU has few.
const leastWaits = 10

func (s *schedulerSource) read() (float64, error) {
	if s.sample == nil {
		s.sample = []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	}
	metrics.Read(s.sample)
	h := s.sample[0].Value.Float64Histogram()
	fresh := make([]uint64, len(h.Counts))
	for i, n := range h.Counts {
		fresh[i] = n
		if s.before != nil {
			fresh[i] -= s.before[i]
		}
	}
	first := s.before == nil
	s.before = append(s.before[:0], h.Counts...)
	if first {
		return 0, nil
	}
	return percentile99(fresh, h.Buckets), nil
}

// percentile99 of a histogram; 0 when it has too few entries.
func percentile99(counts []uint64, buckets []float64) float64 {
	total := uint64(0)
	for _, n := range counts {
		total += n
	}
	if total < leastWaits {
		return 0
	}
	rest := total / 100
	for i := len(counts) - 1; i >= 0; i-- {
		if counts[i] > rest {
			return max(buckets[i], 0) // the lower bound: the upper one of the last is infinite
		}
		rest -= counts[i]
	}
	return 0
}

// stallSource is the part of the time since the last sample in which nothing of the control group ran though it wanted to.
type stallSource struct {
	groups *cgroups
	since  interval
}

func (s *stallSource) read() (float64, error) {
	total, err := s.groups.stalled()
	if err != nil {
		return 0, err
	}
	now := float64(time.Now().UnixNano()) / 1e9
	return s.since.part(now, total), nil
}

// throttleSource is the part of the periods since the last sample in which the quota was used up.
type throttleSource struct {
	groups *cgroups
	since  interval
}

func (s *throttleSource) read() (float64, error) {
	periods, throttled, err := s.groups.throttled()
	if err != nil {
		return 0, err
	}
	return s.since.part(periods, throttled), nil
}

// interval is where two counters were at the last sample.
type interval struct {
	started bool
	all, of float64
}

// part is by how much of has grown for each that all has.
func (i *interval) part(all, of float64) float64 {
	grown, part := all-i.all, of-i.of
	known := i.started && grown > 0 && part >= 0
	*i = interval{true, all, of}
	if !known {
		return 0
	}
	return min(part/grown, 1)
}
