// Package proc starts the programs that the benchmarks measure, each in a process group of its own, reads what they
// use from /proc, and makes sure that none is left behind.
package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const errNoProcess = syscall.ESRCH

const (
	grace      = 2 * time.Second        // how long a process may take to end after SIGTERM
	childGrace = 500 * time.Millisecond // how long its descendants may take before
	look       = 5 * time.Millisecond   // between two looks at them
)

// Spec says what to start.
type Spec struct {
	Path    string   // the program
	Args    []string // without the program's name
	Env     []string // added to this process's environment
	LogFile string   // takes standard error, and standard output unless Piped
	Piped   bool     // standard input and output are pipes of Process: Line reads one, CloseInput ends the other
}

// Process is a started program. Stop must be called, once or more.
type Process struct {
	name    string
	cmd     *exec.Cmd
	log     *os.File
	in      *os.File // writes to its standard input; nil unless piped
	out     *os.File // reads its standard output; nil unless piped
	lines   *bufio.Reader
	unwatch func() bool
	done    chan struct{} // closed when the process has ended and was waited for
	err     error         // how it ended; read after done
	stop    sync.Once
}

// Start starts spec. The process is stopped as by Stop when ctx ends, and killed by the kernel when this one dies.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	name := filepath.Base(spec.Path)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	log, err := os.OpenFile(spec.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	p := &Process{name: name, log: log, cmd: exec.Command(spec.Path, spec.Args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), spec.Env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if spec.Piped {
		err = p.startPiped()
	} else {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	p.watch(ctx)
	return p, nil
}

// watch stops the process when ctx ends.
func (p *Process) watch(ctx context.Context) {
	watching := make(chan struct{})
	defer close(watching)
	p.unwatch = context.AfterFunc(ctx, func() {
		<-watching // Stop uses unwatch
		p.Stop()
	})
}

// startPiped starts the program with pipes of our own instead of those of exec.Cmd, whose Wait closes them and could so
// lose the last lines.
func (p *Process) startPiped() error {
	childIn, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	defer childOut.Close()
	p.cmd.Stdin, p.cmd.Stdout = childIn, childOut
	if err := p.cmd.Start(); err != nil {
		return errors.Join(err, in.Close(), out.Close())
	}
	p.in, p.out, p.lines = in, out, bufio.NewReader(out)
	return nil
}

// PID is the process id, valid until Stop.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how an ended process ended, with the end of its log; nil while it runs and after a success.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	if p.err == nil {
		return nil
	}
	return fmt.Errorf("%s ended: %w%s", p.name, p.err, p.logTail())
}

// Line reads the next line of a piped process's standard output, without its end.
func (p *Process) Line() ([]byte, error) {
	line, err := p.lines.ReadBytes('\n')
	if err == nil {
		return line[:len(line)-1], nil
	}
	if errors.Is(err, io.EOF) {
		<-p.done // its output is closed: it is ending
		if ended := p.Err(); ended != nil {
			return nil, ended
		}
	}
	return nil, fmt.Errorf("read the output of %s: %w", p.name, err)
}

// Send writes text to a piped process's standard input.
func (p *Process) Send(text []byte) error {
	if _, err := p.in.Write(text); err != nil {
		return fmt.Errorf("write to %s: %w", p.name, err)
	}
	return nil
}

// CloseInput ends a piped process's standard input, which the bench's own processes take as the sign to finish.
func (p *Process) CloseInput() error { return p.in.Close() }

// Stop ends the process and all its descendants, and waits for it.
func (p *Process) Stop() {
	p.stop.Do(func() {
		tree := p.tree() // before the first signal: orphans could not be found by their parent any more
		p.stopChildren(tree)
		_ = syscall.Kill(-p.PID(), syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(grace):
		}
		kill(tree)
		<-p.done
		p.unwatch()
		for _, file := range []*os.File{p.in, p.out, p.log} {
			_ = file.Close() // of a nil file: an error and nothing else
		}
	})
}

// stopChildren ends the descendants first, so that their parents can reap them: the init process of a container often
// does not, and orphans would stay as zombies.
func (p *Process) stopChildren(tree []Stat) {
	if len(tree) < 2 {
		return
	}
	for _, s := range slices.Backward(tree[1:]) {
		_ = syscall.Kill(s.PID, syscall.SIGTERM)
	}
	for deadline := time.Now().Add(childGrace); len(p.tree()) > 1 && time.Now().Before(deadline); {
		select {
		case <-p.done:
		case <-time.After(look):
		}
	}
}

// tree lists the process, if it still runs, and its descendants.
func (p *Process) tree() []Stat {
	select {
	case <-p.done:
		return nil // the id may already be another's
	default:
	}
	tree, err := descend([]int{p.PID()})
	if err != nil {
		return []Stat{{PID: p.PID()}}
	}
	return tree
}

// kill ends each process and its group: some descendants (those of sshd) lead groups of their own. An id of the tree
// that was reaped a moment ago is not reused so soon: the kernel hands out ids in turn.
func kill(tree []Stat) {
	for _, s := range tree {
		_ = syscall.Kill(-s.PID, syscall.SIGKILL)
		_ = syscall.Kill(s.PID, syscall.SIGKILL)
	}
}

// logTail is the end of the log as an addition to an error's text.
func (p *Process) logTail() string {
	const most = 1200
	text, err := os.ReadFile(p.log.Name())
	if err != nil || len(text) == 0 {
		return ""
	}
	text = text[max(0, len(text)-most):]
	return "; its log ends with: " + strings.TrimSpace(string(text))
}
