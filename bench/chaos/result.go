package chaos

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"fairlead/shared/errs"
)

// Result is what a run found.
type Result struct {
	Seed        uint64         `json:"seed"`
	Streams     int            `json:"streams"`
	Seconds     float64        `json:"seconds"`
	Cuts        int            `json:"cuts"`
	Kinds       map[Kind]int   `json:"cuts_by_kind"`
	Connections int64          `json:"connections"` // that ended well, every hash equal
	Up          int64          `json:"bytes_up"`    // content that arrived at the backend
	Down        int64          `json:"bytes_down"`  // content that arrived at applications
	Resumes     uint64         `json:"resumes"`     // as the sidecar counts
	Replayed    uint64         `json:"bytes_replayed"`
	LongestMS   int64          `json:"longest_recovery_ms"` // from the end of a cut until bytes moved
	Codes       map[string]int `json:"sidecar_log_codes"`
	Goroutines  [2]int         `json:"goroutines"` // before and after
	Heap        [2]uint64      `json:"heap_bytes"` // before and after
	Failures    []string       `json:"failures"`

	// GatewayResumes is at least Resumes: where the WELCOME was lost, only the gateway knows of the resume.
	GatewayResumes uint64 `json:"gateway_resumes"`

	wantCuts  int
	wantBytes int64
	mu        sync.Mutex // guards Failures
}

func newResult(cfg Config) *Result {
	return &Result{Seed: cfg.Seed, Streams: cfg.Streams, wantCuts: cfg.Cuts, wantBytes: cfg.Bytes, Failures: []string{}}
}

// fail notes a failure and returns how many there are.
func (r *Result) fail(format string, args ...any) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
	return len(r.Failures)
}

// keep notes an error, if there is one.
func (r *Result) keep(err error) {
	if err != nil {
		r.fail("%v", err)
	}
}

// Check adds what the counts give away, and returns an error when anything failed.
func (r *Result) Check() error {
	if r.Cuts < r.wantCuts || r.Up < r.wantBytes || r.Down < r.wantBytes {
		r.fail("%d cuts, %d bytes up and %d down, of %d and %d", r.Cuts, r.Up, r.Down, r.wantCuts, r.wantBytes)
	}
	if r.Resumes == 0 || r.GatewayResumes < r.Resumes {
		r.fail("%d resumes at the sidecar and %d at the gateway", r.Resumes, r.GatewayResumes)
	}
	if noticed, silent := r.Codes[errs.LaneDead.String()], r.Kinds[Stall]+r.Kinds[Blackhole]; noticed < silent {
		r.fail("silence was noticed %d times, of %d", noticed, silent)
	}
	if len(r.Failures) > 0 {
		return fmt.Errorf("%d failures with the seed %d; the first: %s", len(r.Failures), r.Seed, r.Failures[0])
	}
	return nil
}

// WriteJSON writes the result for programs.
func (r *Result) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteText writes the result for people.
func (r *Result) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("seed", "%d", r.Seed)
	row("time", "%.1f s", r.Seconds)
	row("cuts", "%d (%s)", r.Cuts, r.kinds())
	row("connections", "%d in %d streams at a time, every hash equal", r.Connections, r.Streams)
	row("content", "%.1f MiB up, %.1f MiB down", mib(r.Up), mib(r.Down))
	row("resumes", "%d at the sidecar, %d at the gateway, %.1f MiB sent again", r.Resumes, r.GatewayResumes, mib(int64(r.Replayed)))
	row("longest recovery", "%d ms", r.LongestMS)
	row("sidecar's log", "%s", r.codes())
	row("goroutines", "%d before, %d after", r.Goroutines[0], r.Goroutines[1])
	row("heap", "%.1f MiB before, %.1f MiB after", mib(int64(r.Heap[0])), mib(int64(r.Heap[1])))
	row("failures", "%d", len(r.Failures))
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Failures {
		if _, err := fmt.Fprintln(w, "  "+f); err != nil {
			return err
		}
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func (r *Result) kinds() string {
	var parts []string
	for _, k := range Kinds() {
		parts = append(parts, fmt.Sprintf("%s %d", k, r.Kinds[k]))
	}
	return strings.Join(parts, ", ")
}

func (r *Result) codes() string {
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(r.Codes)) {
		parts = append(parts, fmt.Sprintf("%s %d", code, r.Codes[code]))
	}
	return strings.Join(parts, ", ")
}
