package view

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"fairlead/shared/errs"
	"fairlead/sidecar/status"
)

// interval is how often the sidecar is asked.
const interval = time.Second

// Source is whom the view asks; *status.Client is one.
type Source interface {
	Address() string
	Status(ctx context.Context) (*status.Status, error)
	History(ctx context.Context) ([]status.Sample, error)
}

// WatchConfig is what Watch needs.
type WatchConfig struct {
	Source   Source
	In, Out  *os.File      // keys, and where to show
	Color    bool          // whether styles may be used on a terminal
	Interval time.Duration // between two looks; 0: 1 s
}

// answer is the result of one look.
type answer struct {
	st      *status.Status
	samples []status.Sample // of the first look
	err     error
	at      time.Time
	fatal   bool
}

// Watch shows the sidecar's status until q, Ctrl-C, a signal to end or the end of ctx, whether the sidecar answers or not.
// Where cfg.Out is no terminal, it writes a line whenever something changes.
func Watch(ctx context.Context, cfg WatchConfig) error {
	if cfg.Interval <= 0 {
		cfg.Interval = interval
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	answers := make(chan answer)
	wg.Go(func() { look(ctx, cfg, answers) })
	if !term.IsTerminal(int(cfg.Out.Fd())) || os.Getenv("TERM") == "dumb" {
		return changes(ctx, answers, cfg.Out)
	}
	s, err := openScreen(cfg.In, cfg.Out)
	if err != nil {
		return err
	}
	defer s.close()
	wg.Go(func() {
		if s.quitKey(ctx.Done()) {
			cancel()
		}
	})
	return live(ctx, s, answers, cfg)
}

// look asks again and again, and hands over what comes back. A fault in it must not leave the terminal as it is: it is
// handed over, too.
func look(ctx context.Context, cfg WatchConfig, answers chan<- answer) {
	hand := func(a answer) bool {
		a.at = time.Now()
		select {
		case answers <- a:
			return true
		case <-ctx.Done():
			return false
		}
	}
	defer func() {
		if p := recover(); p != nil {
			hand(answer{fatal: true, err: errs.New(errs.Panicked, "asking the sidecar: %v\n%s", p, debug.Stack())})
		}
	}()
	tick := time.NewTicker(cfg.Interval)
	defer tick.Stop()
	remembered := false
	for {
		var a answer
		if a.st, a.err = cfg.Source.Status(ctx); a.err == nil && !remembered {
			remembered = true
			a.samples, _ = cfg.Source.History(ctx) // without it the sparklines just begin empty
		}
		if !hand(a) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// live draws whenever there is something new, the time included.
func live(ctx context.Context, s *screen, answers <-chan answer, cfg WatchConfig) error {
	m := Model{Address: cfg.Source.Address()}
	clock := time.NewTicker(time.Second)
	defer clock.Stop()
	for {
		columns, rows := s.size()
		if err := s.draw(m.Frame(columns, rows, time.Now()), cfg.Color); err != nil {
			return err
		}
		select {
		case a := <-answers:
			if a.fatal {
				return a.err
			}
			m.take(a)
		case <-s.resized:
		case <-clock.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Model) take(a answer) {
	if a.err != nil {
		m.Failed(a.err, a.at)
		return
	}
	m.Remember(a.samples)
	m.Answered(a.st)
}

// changes writes a line for each change, and for each event.
func changes(ctx context.Context, answers <-chan answer, out *os.File) error {
	var log changeLog
	for {
		select {
		case a := <-answers:
			if a.fatal {
				return a.err
			}
			for _, line := range log.lines(a) {
				if _, err := fmt.Fprintln(out, line); err != nil {
					return errs.Wrap(errs.Internal, err, "writing")
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}
