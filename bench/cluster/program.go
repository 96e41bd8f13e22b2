package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"fairlead/bench/proc"
	sharedconfig "fairlead/shared/config"
)

// program is a process that can be ended and started again, at the same addresses.
type program struct {
	Name string

	exe, config, log string // files
	env              []string
	args             []string
	admin            string // host:port

	mu      sync.Mutex
	process *proc.Process // nil when it does not run
	started int           // how often
}

// Launch starts the program and returns at once.
func (p *program) Launch(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process != nil {
		return fmt.Errorf("%s already runs", p.Name)
	}
	// It ends with stop, after what needs it; not with ctx.
	process, err := proc.Start(context.WithoutCancel(ctx), proc.Spec{Path: p.exe, Args: append([]string{"run", "--config", p.config}, p.args...), Env: p.env, LogFile: p.log})
	if err == nil {
		p.process = process
		p.started++
	}
	return err
}

func (p *program) running() bool { return p.current() != nil }

func (p *program) current() *proc.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process
}

// take makes the program one that does not run.
func (p *program) take() *proc.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	process := p.process
	p.process = nil
	return process
}

// stop ends the program, in order if it does so soon.
func (p *program) stop() {
	if process := p.take(); process != nil {
		_ = syscall.Kill(process.PID(), syscall.SIGCONT) // it may be paused, or over
		process.Stop()
	}
}

// Kill ends the program at once, as a crash does.
func (p *program) Kill() {
	if process := p.take(); process != nil {
		_ = syscall.Kill(process.PID(), syscall.SIGKILL) // it may be over
		<-process.Done()
		process.Stop()
	}
}

// Terminate asks the program to end, as by SIGTERM, and returns a channel that tells how it did: nil after a success.
func (p *program) Terminate() (<-chan error, error) {
	process := p.current()
	if process == nil {
		return nil, fmt.Errorf("%s does not run", p.Name)
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		<-process.Done()
		p.take()
		err := process.Err()
		process.Stop()
		ended <- err
	}()
	return ended, nil
}

// Pause freezes the program, and returns when all of its threads stand; Continue ends that.
func (p *program) Pause(ctx context.Context) error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return Until(ctx, readyTimeout, p.Name+" stands", p.stands, p.Err)
}

// stands says whether every thread is stopped: on a busy machine some run on for a while.
func (p *program) stands() bool {
	process := p.current()
	if process == nil {
		return false
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", process.PID()))
	for _, file := range threads {
		line, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		state := line[bytes.LastIndexByte(line, ')')+1:] // proc(5): after the command in parentheses
		if !bytes.HasPrefix(state, []byte(" T")) {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

// Continue ends a Pause.
func (p *program) Continue() error { return p.signal(syscall.SIGCONT) }

func (p *program) signal(sig syscall.Signal) error {
	process := p.current()
	if process == nil {
		return fmt.Errorf("%s does not run", p.Name)
	}
	select {
	case <-process.Done():
		return fmt.Errorf("%s has ended", p.Name)
	default:
		return syscall.Kill(process.PID(), sig)
	}
}

// Err says how a program has ended that was not asked to; nil while it runs.
func (p *program) Err() error {
	process := p.current()
	if process == nil {
		return nil
	}
	select {
	case <-process.Done():
		if err := process.Err(); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		return fmt.Errorf("%s has ended by itself", p.Name)
	default:
		return nil
	}
}

// Ready waits until the program says that connections would work.
func (p *program) Ready(ctx context.Context) error {
	return Until(ctx, readyTimeout, p.Name+" is ready", func() bool {
		if err := p.Err(); err != nil {
			return false
		}
		status, _, err := p.Ask(ctx, http.MethodGet, "/readyz", "")
		return err == nil && status == http.StatusOK
	}, p.Err)
}

// Admin is where the program's admin API is, "http://host:port/".
func (p *program) Admin() string { return "http://" + p.admin + "/" }

// Ask asks the program's admin API.
func (p *program) Ask(ctx context.Context, method, path, body string) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+p.admin+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// Get reads what the admin API says at path into v.
func (p *program) Get(ctx context.Context, path string, v any) error {
	status, answer, err := p.Ask(ctx, http.MethodGet, path, "")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s answers GET %s with %d: %.200s", p.Name, path, status, answer)
	}
	return json.Unmarshal(answer, v)
}

// Metrics reads the program's metrics.
func (p *program) Metrics(ctx context.Context) (Metrics, error) {
	status, answer, err := p.Ask(ctx, http.MethodGet, "/metrics", "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answers GET /metrics with %d", p.Name, status)
	}
	return Metrics(answer), err
}

// Log returns what the program has logged, over all its lives.
func (p *program) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Logged counts the lines of the log that hold all of parts.
func (p *program) Logged(parts ...string) (n int) {
	for line := range strings.SplitSeq(p.Log(), "\n") {
		all := line != ""
		for _, part := range parts {
			all = all && strings.Contains(line, part)
		}
		if all {
			n++
		}
	}
	return n
}

// Metrics is Prometheus text.
type Metrics string

// Sum adds the series of a name whose labels hold all of these, such as `kind="relayed"`. known is false when there is
// none.
func (m Metrics) Sum(name string, labels ...string) (sum float64, known bool) {
	for line := range strings.SplitSeq(string(m), "\n") {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		end := strings.LastIndexByte(rest, ' ')
		found := true
		for _, label := range labels {
			found = found && strings.Contains(rest[:end], label)
		}
		if value, err := strconv.ParseFloat(rest[end+1:], 64); found && err == nil {
			sum, known = sum+value, true
		}
	}
	return sum, known
}

// Until waits for a condition that must come true. fatal tells of what makes waiting useless.
func Until(ctx context.Context, patience time.Duration, what string, condition func() bool, fatal ...func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !condition() {
		for _, f := range fatal {
			if err := f(); err != nil {
				return fmt.Errorf("before %s: %w", what, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
	return nil
}

// write writes a configuration whole, so that nothing of the environment and of changing defaults counts.
func write[T sharedconfig.Validator](file string, cfg T) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	var text strings.Builder
	if err := sharedconfig.WriteDefaults(&text, cfg); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text.String()), 0o600)
}
