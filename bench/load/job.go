package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Kind is what a load client does.
type Kind string

// The kinds of jobs.
const (
	Transfer Kind = "transfer" // move Bytes over Streams connections at once
	Opens    Kind = "opens"    // Workers loop: connect, 64-byte echo, close; Count in all
	Hold     Kind = "hold"     // open Count connections, echo once on each, keep them until told to end
	Steady   Kind = "steady"   // one connection at full rate; measured for Duration after Warmup
	Echo     Kind = "echo"     // one connection, 64-byte echoes with Pause between them, for Duration
	Bulk     Kind = "bulk"     // Streams connections at full rate in each of the directions, until told to end
)

// Job is the order to a load client: one line of JSON on its standard input.
type Job struct {
	Kind     Kind          `json:"kind"`
	Addr     string        `json:"addr"`
	Streams  int           `json:"streams,omitempty"`
	Workers  int           `json:"workers,omitempty"`
	Count    int           `json:"count,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"` // in all streams together
	Up       bool          `json:"up,omitempty"`
	Down     bool          `json:"down,omitempty"`
	Warmup   time.Duration `json:"warmup,omitempty"`
	Duration time.Duration `json:"duration,omitempty"`
	Pause    time.Duration `json:"pause,omitempty"`
}

// Outcome is a load client's last line: what it saw.
type Outcome struct {
	Bytes   int64     `json:"bytes,omitempty"`   // content moved and verified in the measured time
	Count   int       `json:"count,omitempty"`   // connections or echoes that succeeded
	Seconds float64   `json:"seconds,omitempty"` // the measured time
	Latency Quantiles `json:"latency,omitzero"`  // open to first byte, or round trip
}

// MBPerSecond is Bytes over Seconds in units of 10^6 bytes.
func (o Outcome) MBPerSecond() float64 {
	if o.Seconds <= 0 {
		return 0
	}
	return float64(o.Bytes) / 1e6 / o.Seconds
}

// event is one line that a load client writes: ready once for Hold and Bulk, and at the end the outcome.
type event struct {
	Ready   bool     `json:"ready,omitempty"`
	Outcome *Outcome `json:"outcome,omitempty"`
}

// ClientCommand is the hidden command that runs one Job from standard input.
func ClientCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load-client", Short: "Run one load job from standard input", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in := bufio.NewReader(cmd.InOrStdin())
			line, err := in.ReadBytes('\n')
			if err != nil {
				return fmt.Errorf("read the job: %w", err)
			}
			var job Job
			if err := json.Unmarshal(line, &job); err != nil {
				return fmt.Errorf("read the job: %w", err)
			}
			return runJob(cmd.Context(), job, in, json.NewEncoder(cmd.OutOrStdout()))
		},
	}
}

// runJob runs job; in ends when the parent wants a lasting job to end.
func runJob(ctx context.Context, job Job, in io.Reader, out *json.Encoder) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // lives as long as the process or its input
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	ready := func() error { return out.Encode(event{Ready: true}) }
	outcome, err := dispatch(ctx, job, ready)
	if err != nil {
		return fmt.Errorf("%s through %s: %w", job.Kind, job.Addr, err)
	}
	return out.Encode(event{Outcome: &outcome})
}

func dispatch(ctx context.Context, job Job, ready func() error) (Outcome, error) {
	switch job.Kind {
	case Transfer:
		return transfer(ctx, job)
	case Opens:
		return opens(ctx, job)
	case Hold:
		return hold(ctx, job, ready)
	case Steady:
		return steady(ctx, job)
	case Echo:
		return echo(ctx, job)
	case Bulk:
		return bulk(ctx, job, ready)
	}
	return Outcome{}, fmt.Errorf("unknown kind of job %q", job.Kind)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
