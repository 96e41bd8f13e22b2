package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 10 * time.Second       // for a server to answer on its port
	pollInterval = 10 * time.Millisecond  // between two looks at a condition
	probeTimeout = 500 * time.Millisecond // for one connection that asks whether a server answers
	portAttempts = 5                      // how often a port that another process took meanwhile is replaced
)

// errExited says that a server ended before it answered.
var errExited = errors.New("the process ended")

// process is a child process with its output in a file, in a process group of its own.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	done   chan struct{} // closed when the process has been waited for
	killed sync.Once
}

// startProcess runs name with args; its output is appended to logPath.
func startProcess(logPath, name string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = filepath.Dir(logPath)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *process) wait() {
	defer close(p.done)
	_ = p.cmd.Wait() // how it ended is in its log and does not matter to a test bed
	_ = p.log.Close()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal reports an error when the process is gone. A process that was waited for is never signalled: its id may
// belong to somebody else by now.
func (p *process) signal(sig syscall.Signal) error {
	if p.exited() {
		return errExited
	}
	return p.cmd.Process.Signal(sig)
}

// kill ends the process and everything below it, and returns when the process has been waited for.
func (p *process) kill() {
	p.killed.Do(func() {
		if !p.exited() {
			killTree(p.pid())
		}
	})
	<-p.done
}

// terminate asks the process to end, and kills it when it has not within the grace.
func (p *process) terminate(grace time.Duration) { p.endWith(syscall.SIGTERM, grace) }

// endWith is terminate with another signal than SIGTERM.
func (p *process) endWith(sig syscall.Signal, grace time.Duration) {
	if p.signal(sig) == nil {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		}
	}
	p.kill()
}

// waitUntil calls ready until it returns nil. It gives up when the process ends, ctx is done or the time for starting
// is over, with the end of the process's log in the error.
func (p *process) waitUntil(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s: %w: %s", p.cmd.Path, errExited, tail(p.log.Name()))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w: %w: %s", p.cmd.Path, ctx.Err(), err, tail(p.log.Name()))
		case <-tick.C:
		}
	}
}

// tail returns the last 2 KiB of a file, for an error message.
func tail(path string) string {
	const most = 2 << 10
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(raw) > most {
		raw = raw[len(raw)-most:]
	}
	return strings.TrimSpace(string(raw))
}

// unusedAddr returns an address that nobody listened on a moment ago. For programs that cannot listen on port 0 and
// tell; whoever uses it tries again when the port has been taken meanwhile.
func unusedAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr := l.Addr().String()
	return addr, l.Close()
}

// taken reports whether a server failed to start since its address is in use.
func taken(err error) bool { return err != nil && strings.Contains(err.Error(), "in use") }
