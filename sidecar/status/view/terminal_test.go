package view_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/sidecar/status"
	"fairlead/sidecar/status/view"
)

const (
	watchAddress = "VIEW_TEST_ADDRESS" // makes the test binary a viewer of this address
	watchFault   = "VIEW_TEST_FAULT"   // makes that viewer panic at its second look
	watchPID     = "VIEW_TEST_PID"     // where that viewer leaves its process id
)

func TestMain(m *testing.M) {
	if address := os.Getenv(watchAddress); address != "" {
		os.Exit(errs.ExitCode(watch(address)))
	}
	goleak.VerifyTestMain(m)
}

// watch is what `status --watch` does.
func watch(address string) error {
	c, err := status.NewClient(status.ClientConfig{Address: address, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	if path := os.Getenv(watchPID); path != "" {
		if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			return err
		}
	}
	return view.Watch(context.Background(), view.WatchConfig{Source: &faulty{Client: c}, In: os.Stdin, Out: os.Stdout, Color: os.Getenv("NO_COLOR") == "",
		Interval: 50 * time.Millisecond})
}

type faulty struct {
	*status.Client
	looks int
}

func (f *faulty) Status(ctx context.Context) (*status.Status, error) {
	if f.looks++; f.looks > 1 && os.Getenv(watchFault) != "" {
		panic("a fault")
	}
	return f.Client.Status(ctx)
}

// sidecar answers with a status that tests change.
type sidecar struct {
	status atomic.Pointer[status.Status]
	srv    *httptest.Server
}

// startSidecar listens on address; "127.0.0.1:0" takes any port.
func startSidecar(t *testing.T, address string, st *status.Status) *sidecar {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	s := &sidecar{}
	s.status.Store(st)
	s.srv = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any = s.status.Load()
		if r.URL.Path == "/api/history" {
			answer = []status.Sample{{Sent: 5 << 20}, {Sent: 1 << 20}}
		}
		_ = json.NewEncoder(w).Encode(answer) // the viewer may have gone
	})}}
	s.srv.Start()
	t.Cleanup(s.srv.Close)
	return s
}

func (s *sidecar) address() string { return s.srv.Listener.Addr().String() }

// pane is a terminal of tmux in which a viewer runs.
type pane struct {
	t      *testing.T
	socket string
	pid    string
}

// openPane starts the viewer from a shell that says how it ended and in which state it left the terminal.
func openPane(t *testing.T, address string, columns, rows int, env ...string) *pane {
	t.Helper()
	dir, err := os.MkdirTemp("", "view") // the path of a socket must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &pane{t, filepath.Join(dir, "s"), filepath.Join(dir, "pid")}
	self, err := os.Executable()
	require.NoError(t, err)
	env = append(env, watchAddress+"="+address, watchPID+"="+p.pid)
	script := fmt.Sprintf(`echo before; env %s '%s'; echo "rc=$?"; stty -a | grep -q -- '-icanon' && echo raw || echo cooked; exec sleep 3600`, strings.Join(env, " "), self)
	p.tmux("new-session", "-d", "-x", strconv.Itoa(columns), "-y", strconv.Itoa(rows), script)
	t.Cleanup(func() { p.tmux("kill-server") })
	return p
}

func (p *pane) tmux(args ...string) string {
	p.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-u", "-f", "/dev/null", "-S", p.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SHELL=/bin/sh", "TERM=xterm-256color", "TMUX=")
	out, err := cmd.CombinedOutput()
	require.NoError(p.t, err, "tmux %v: %s", args, out)
	return string(out)
}

func (p *pane) screen() string { return p.tmux("capture-pane", "-p") }

// shows waits until the screen has all texts.
func (p *pane) shows(texts ...string) string {
	p.t.Helper()
	var screen string
	if !assert.Eventually(p.t, func() bool {
		screen = p.screen()
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false
			}
		}
		return true
	}, time.Minute, 20*time.Millisecond) {
		p.t.Fatalf("no %q in:\n%s", texts, screen)
	}
	return screen
}

// fits waits until the view fills the terminal, from its title to its last row, and wraps nothing.
func (p *pane) fits(columns, rows int) {
	p.t.Helper()
	var lines []string
	if !assert.Eventually(p.t, func() bool {
		lines = strings.Split(strings.TrimRight(p.screen(), "\n"), "\n")
		return len(lines) == rows && strings.HasPrefix(lines[rows-1], "q quits") && strings.HasPrefix(lines[0], "fairlead")
	}, time.Minute, 20*time.Millisecond) {
		p.t.Fatalf("not %d by %d:\n%s", columns, rows, strings.Join(lines, "\n"))
	}
	for _, line := range lines {
		assert.LessOrEqual(p.t, len([]rune(line)), columns)
	}
}

// restored waits for the viewer's end, and checks that the terminal is as it was.
func (p *pane) restored(code int) {
	p.t.Helper()
	screen := p.shows("before\n", fmt.Sprintf("rc=%d\n", code), "cooked")
	assert.NotContains(p.t, screen, "q quits")
	assert.Equal(p.t, "0 1 1\n", p.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}"))
}

func needTmux(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed: .ci/install does it")
	}
}

// recent is a status whose times are near to now.
func recent(st *status.Status) *status.Status {
	by := time.Since(noon)
	move := func(t *time.Time) { *t = t.Add(by) }
	move(&st.Started)
	move(&st.Since)
	for i := range st.Tunnels {
		move(&st.Tunnels[i].Since)
	}
	for i := range st.Endpoints {
		move(&st.Endpoints[i].Since)
	}
	for i := range st.Events {
		move(&st.Events[i].Time)
	}
	if st.Shutdown != nil {
		st.Shutdown.Deadline = time.Now().Add(time.Hour)
	}
	return st
}

// Verifies: R1.5, R8.10
func TestTheLiveViewInATerminal(t *testing.T) {
	needTmux(t)
	s := startSidecar(t, "127.0.0.1:0", recent(well()))
	p := openPane(t, s.address(), 80, 24)
	screen := p.shows("● connected for 2h 13m  ready  quality good", "peak 5.0 MiB/s", "queue      ░", "gateway-b.eu.example.com", "git       127.0.0.1:2222", "q quits")
	assert.Len(t, strings.Split(strings.TrimRight(screen, "\n"), "\n"), 24)
	assert.Contains(t, p.tmux("capture-pane", "-p", "-e"), "\x1b[32m", "colours")
	assert.Equal(t, "1 0\n", p.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}"))

	s.status.Store(recent(reconnecting()))
	p.shows("● resuming", "83 of 100, under pressure", "because    no tunnel is up: FL-N101")
	s.status.Store(recent(draining()))
	p.shows("● draining", "stopping   delivering: connections 3, spool 1.2 MiB")

	p.tmux("resize-window", "-x", "140", "-y", "40")
	p.fits(140, 40)
	p.shows("fairlead-ga", "received")
	p.tmux("resize-window", "-x", "44", "-y", "14")
	p.fits(44, 14)
	assert.Contains(t, p.screen(), "up 3d …\n", "the last column is used")

	p.tmux("send-keys", "q")
	p.restored(0)
}

// Verifies: R1.5
func TestTheLiveViewOutlivesTheSidecar(t *testing.T) {
	needTmux(t)
	s := startSidecar(t, "127.0.77.1:0", recent(well())) // nobody else takes a port of this address meanwhile
	address := s.address()
	s.srv.Close()
	p := openPane(t, address, 100, 30, "NO_COLOR=1")
	p.shows("no answer since", "connection refused")
	s = startSidecar(t, address, recent(well()))
	p.shows("● connected")
	s.srv.Close()
	p.shows("○ no answer since", "gateway-a.eu.example.com")
	startSidecar(t, address, recent(failed()))
	p.shows("● failed", "FL-N110 gave up after 10 attempts")
	assert.NotContains(t, p.tmux("capture-pane", "-p", "-e"), "\x1b[3", "no colours")

	pid, err := os.ReadFile(p.pid)
	require.NoError(t, err)
	n, err := strconv.Atoi(string(pid))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(n, syscall.SIGTERM))
	p.restored(0)
}

func TestCtrlCAndFaultsRestoreTheTerminal(t *testing.T) {
	needTmux(t)
	evil := "\x1b]0;owned\x07\x1b[?1049l\x1b[41mred\u009b42m"
	st := recent(hostile(evil))
	st.Rates, st.RTT, st.Loss, st.Shutdown = status.Rates{}, 0, 0, nil // JSON has no such numbers
	s := startSidecar(t, "127.0.0.1:0", st)
	p := openPane(t, s.address(), 120, 30)
	p.shows("·]0;owned··[?1049l·[41mred·42m", "q quits")
	assert.NotContains(t, p.tmux("display-message", "-p", "#{pane_title}"), "owned")
	assert.NotContains(t, p.tmux("capture-pane", "-p", "-e"), "\x1b[41m")
	p.tmux("send-keys", "C-c")
	p.restored(0)

	p = openPane(t, s.address(), 80, 24, watchFault+"=1")
	p.restored(1)
}

// Verifies: R1.5
func TestWithoutATerminalChangesAreLines(t *testing.T) {
	s := startSidecar(t, "127.0.0.1:0", recent(well()))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), watchAddress+"="+s.address())
	cmd.Stdout = w
	require.NoError(t, cmd.Start())
	w.Close()
	defer r.Close()
	lines := linesOf(r)
	next := func() string {
		_, text, _ := strings.Cut(<-lines, " ") // without its time
		return text
	}
	assert.Equal(t, "connected, ready, tunnels 2 of 2, quality good", next())
	st := recent(reconnecting())
	st.Events = append(st.Events, status.Event{Time: time.Now().Add(time.Second), State: "resuming", Code: "FL-N101", Reason: "refused\x1b[2J", Attempt: 6})
	s.status.Store(st)
	for { // events in between are told, too
		if got := next(); !strings.HasPrefix(got, "tunnel ") {
			assert.Equal(t, "resuming, not ready: no tunnel is up: FL-N101: dial tcp 10.4.0.7:443: connection refused, tunnels 0 of 2, quality -, queue 83 of 100", got)
			break
		} else if strings.Contains(got, "attempt 6") {
			assert.Equal(t, "tunnel 0 resuming: FL-N101 refused·[2J, attempt 6", got)
		}
	}
	s.srv.Close()
	assert.Contains(t, next(), "no answer: FL-N115")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	for range lines {
	}
	assert.NoError(t, cmd.Wait())
}

func linesOf(r *os.File) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		data, buf := "", make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			data += string(buf[:n])
			for line, rest, ok := strings.Cut(data, "\n"); ok; line, rest, ok = strings.Cut(data, "\n") {
				data = rest
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	return lines
}
