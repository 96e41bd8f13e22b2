package spool

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What a process is told that is a spool to be killed.
const (
	childDir   = "FAIRLEAD_TEST_SPOOL"
	childURL   = "FAIRLEAD_TEST_SPOOL_GATEWAY"
	childFsync = "FAIRLEAD_TEST_SPOOL_FSYNC"
	childNet   = "FAIRLEAD_TEST_SPOOL_LISTEN"
)

// child is a sidecar that receives and delivers until it is killed.
func child(dir string) int {
	c := &client{url: os.Getenv(childURL)}
	s, err := New(Config{Dir: dir, Fsync: os.Getenv(childFsync), Segment: 64 << 10, RetryBase: time.Millisecond, RetryCap: 10 * time.Millisecond, Interval: 5 * time.Millisecond,
		Stream: c.open, Logger: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	network, addr, _ := strings.Cut(os.Getenv(childNet), " ")
	l, err := net.Listen(network, addr)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c.lost = c.url == ""
	go s.Run(context.Background())
	fmt.Println("listening " + l.Addr().String())
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		go s.Accept(context.Background(), conn, origin, nil)
	}
}

// process is a running child.
type process struct {
	cmd  *exec.Cmd
	addr string
}

func startChild(t *testing.T, dir, url, fsync, listen string) *process {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir, childURL+"="+url, childFsync+"="+fsync, childNet+"="+listen)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{cmd: cmd}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening ")
	if err != nil || !ok {
		t.Fatalf("the child says %q, %v", line, err)
	}
	p.addr = addr
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// swarm is applications that send without pause, and remember what was acknowledged.
type swarm struct {
	mu    sync.Mutex
	sent  [][]byte
	acked map[[32]byte]bool
	seed  uint64
	stop  bool
}

func (w *swarm) next() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop {
		return nil
	}
	w.seed++
	r := rand.New(rand.NewPCG(w.seed, 7))
	data := content(w.seed, 1+r.IntN(1<<(4+r.IntN(15))))
	w.sent = append(w.sent, data)
	return data
}

func (w *swarm) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// send sends connections until one fails or the swarm is stopped.
func (w *swarm) send(network, addr string) {
	for data := w.next(); data != nil; data = w.next() {
		c, err := net.Dial(network, addr)
		if err != nil {
			return
		}
		_, err = c.Write(data)
		if err == nil {
			err = (&sender{Conn: c}).finish()
		}
		c.Close()
		if err != nil {
			return
		}
		w.mu.Lock()
		w.acked[sha256.Sum256(data)] = true
		w.mu.Unlock()
	}
}

// Whatever the moment of a SIGKILL: what an application was told is kept is delivered, and nothing else ever arrives than what
// was sent.
//
// Verifies: R5.9, R5.10
func TestSIGKILLAtAnyMoment(t *testing.T) {
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for _, fsync := range []string{FsyncNever, FsyncInterval, FsyncAlways} {
		for _, listen := range []string{"tcp 127.0.0.1:0", "unix "} {
			r := newRig(t, func(c *Config) { c.Segment = 64 << 10 })
			r.stop()
			w := &swarm{acked: map[[32]byte]bool{}}
			for round := range 4 {
				url := r.b.url
				if round == 0 {
					url = "" // receives only
				}
				network := listen
				if strings.HasPrefix(listen, "unix") {
					network = fmt.Sprintf("unix %s/%d", t.TempDir(), round)
				}
				p := startChild(t, r.cfg.Dir, url, fsync, network)
				var senders sync.WaitGroup
				kind, _, _ := strings.Cut(network, " ")
				for range 6 {
					senders.Go(func() { w.send(kind, p.addr) })
				}
				enough := w.acknowledged() + round + rnd.IntN(12)
				r.eventually("some are acknowledged", func() bool { return w.acknowledged() >= enough })
				<-time.After(time.Duration(rnd.IntN(5000)) * time.Microsecond) // the moment of the kill is random
				p.kill()
				senders.Wait()
			}
			r.open()
			r.start()
			r.eventually("everything is delivered", func() bool { return r.Status().Connections == 0 })
			r.eventually("it arrives", func() bool { return missing(w, r.b) == 0 })
			assert.Zero(t, r.Status().Quarantined)
			for _, a := range r.b.arrivals() {
				got := a.bytes()
				known := len(got) == 0
				for _, sent := range w.sent {
					known = known || bytes.Contains(sent, got)
				}
				require.True(t, known, "%d bytes that nobody sent", len(got))
			}
			t.Logf("fsync %s, %s: %d acknowledged of %d, %d deliveries", fsync, listen, len(w.acked), len(w.sent), len(r.b.arrivals()))
			r.stop()
		}
	}
}

func missing(w *swarm, b *backend) (n int) {
	got := b.hashes()
	for sum := range w.acked {
		if got[sum] == 0 {
			n++
		}
	}
	return n
}

// An application that has ended its direction and waits must not take the death of the sidecar for the acknowledgement.
func TestAKillIsNoAcknowledgement(t *testing.T) {
	r := newRig(t, nil)
	p := startChild(t, r.cfg.Dir+"-child", "", FsyncInterval, "tcp 127.0.0.1:0")
	c, err := net.Dial("tcp", p.addr)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("half"))
	require.NoError(t, err)
	r.eventually("it was read", func() bool {
		found, err := list(r.cfg.Dir + "-child")
		return err == nil && len(found) == 1 && len(found[0].segs) == 1
	})
	p.kill()
	_, err = c.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "reset", "with nothing unread the kernel would have sent an end")
}

// Verifies: R5.9
func TestTwoProcessesOnOneDirectory(t *testing.T) {
	r := newRig(t, nil)
	r.stop()
	p := startChild(t, r.cfg.Dir, "", FsyncNever, "tcp 127.0.0.1:0")
	r.cfg.Metrics = metrics.NewSet()
	_, err := New(r.cfg)
	assert.ErrorContains(t, err, fmt.Sprintf("in use by the process with id %d", p.cmd.Process.Pid))
	_, err = Offline(r.cfg.Dir, "", nil)
	assert.ErrorContains(t, err, "in use")
	p.kill()
	r.open()
}
