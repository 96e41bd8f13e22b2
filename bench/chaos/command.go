package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// options are the flags of the command.
type options struct {
	cuts, streams int
	bytes         size
	seed          uint64
	heartbeat     time.Duration
	out           string
}

// Command is `bench chaos`.
func Command() *cobra.Command {
	o := &options{bytes: 1 << 30}
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Cut the network under transfers and verify that nothing is lost",
		Long: "Runs a sidecar and a gateway in this process, transfers both ways in several streams at a time, and cuts the network\n" +
			"between the two inside frames, handshakes and resumes, with resets and with silence. It fails when a hash differs, a\n" +
			"connection is lost, or goroutines or memory stay behind; it prints a table and writes chaos.json and chaos.log.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.IntVar(&o.cuts, "cuts", 1000, "cuts of the network")
	flags.Var(&o.bytes, "bytes", "content in each direction, at least")
	flags.IntVar(&o.streams, "streams", 8, "connections at a time")
	flags.Uint64Var(&o.seed, "seed", 0, "of what is cut when; 0: a new one, which is printed")
	flags.DurationVar(&o.heartbeat, "heartbeat", defaultHeartbeat, "of both programs: how soon silence is noticed")
	flags.StringVar(&o.out, "out", filepath.Join("bin", "bench"), "directory for chaos.json and chaos.log")
	return cmd
}

func (o *options) run(cmd *cobra.Command) (err error) {
	dir, err := os.MkdirTemp("", "fairlead-chaos-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(o.out, "chaos.log"))
	if err != nil {
		return err
	}
	log := bufio.NewWriterSize(logFile, 64<<10)
	defer func() { err = errors.Join(err, log.Flush(), logFile.Close()) }()
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "seed %d\n", o.seed)
	told := time.Now()
	r, err := Run(cmd.Context(), Config{Cuts: o.cuts, Bytes: int64(o.bytes), Streams: o.streams, Seed: o.seed, Heartbeat: o.heartbeat, Dir: dir, Log: log,
		Progress: func(p Progress) {
			if now := time.Now(); now.Sub(told) > 10*time.Second {
				told = now
				fmt.Fprintf(cmd.ErrOrStderr(), "%d cuts, %.0f MiB up, %.0f MiB down\n", p.Cuts, mib(p.Up), mib(p.Down))
			}
		}})
	if err != nil {
		return err
	}
	failed := r.Check()
	return errors.Join(failed, r.WriteText(cmd.OutOrStdout()), o.write(r))
}

func (o *options) write(r *Result) error {
	f, err := os.Create(filepath.Join(o.out, "chaos.json"))
	if err != nil {
		return err
	}
	return errors.Join(r.WriteJSON(f), f.Close())
}

// size is a flag: a number of bytes with its unit.
type size int64

func units() []struct {
	name  string
	bytes int64
} {
	return []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}
}

// String is the size in its largest whole unit.
func (s *size) String() string {
	for _, u := range units() {
		if int64(*s) >= u.bytes && int64(*s)%u.bytes == 0 {
			return strconv.FormatInt(int64(*s)/u.bytes, 10) + u.name
		}
	}
	return "0B"
}

// Set reads a size such as 64MiB.
func (s *size) Set(text string) error {
	for _, u := range units() {
		if number, ok := strings.CutSuffix(text, u.name); ok {
			n, err := strconv.ParseInt(number, 10, 64)
			if err != nil || n < 1 || n > (1<<62)/u.bytes {
				break
			}
			*s = size(n * u.bytes)
			return nil
		}
	}
	return fmt.Errorf("%q: allowed is a size with its unit (B, KiB, MiB, GiB), such as 64MiB", text)
}

// Type names the flag's type in its help.
func (s *size) Type() string { return "size" }
