package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Attackers run in a process of their own, which is this test binary again: what they hold must not show in the figures of
// the server, and they take the processor when nobody else wants it.
const (
	attackKind = "FAIRLEAD_ATTACK"
	attackAddr = "FAIRLEAD_ATTACK_ADDR"
	attackN    = "FAIRLEAD_ATTACK_N"
)

// tally is what an attacker has seen.
type tally struct {
	Connected int64 // connections that came as far as the attack wants
	Failed    int64 // that were refused or cut before
	Cut       int64 // that were cut later
}

// attack is one that runs.
type attack struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// attack begins an attack with n connections at once; when one of them ends, another takes its place.
func (f *face) attack(kind string, n int) *attack {
	f.t.Helper()
	cmd := exec.CommandContext(f.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), attackKind+"="+kind, attackAddr+"="+f.Addr().String(), attackN+"="+strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(f.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(f.t, err)
	require.NoError(f.t, cmd.Start())
	return &attack{f.t, cmd, in, bufio.NewReader(out)}
}

// wait returns when every connection has been tried once.
func (a *attack) wait() tally { return a.line() }

// stop ends the attack.
func (a *attack) stop() tally {
	a.t.Helper()
	require.NoError(a.t, a.stdin.Close())
	r := a.line()
	require.NoError(a.t, a.cmd.Wait())
	return r
}

func (a *attack) line() (r tally) {
	a.t.Helper()
	line, err := a.out.ReadBytes('\n')
	require.NoError(a.t, err)
	require.NoError(a.t, json.Unmarshal(line, &r))
	return r
}

// attacking is the attacker's side.
type attacking struct {
	addr  string
	ctx   context.Context // ends with the attack
	hello []byte          // of a client that does not go on

	connected, failed, cut atomic.Int64
}

// attacker is the main function of the other process.
func attacker() {
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10)
	n, err := strconv.Atoi(os.Getenv(attackN))
	if err != nil {
		panic(err)
	}
	ctx, end := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		end()
	}()
	a := &attacking{addr: os.Getenv(attackAddr), ctx: ctx, hello: clientHello()}
	act := map[string]act{"tcp": a.silent, "tls": overTLS(a.silent), "slow": overTLS(a.slow), "requests": overTLS(a.requests), "storm": overTLS(a.leave), "hello": a.halfway}[os.Getenv(attackKind)]
	var first, all sync.WaitGroup
	gate := make(chan struct{}, 100) // connecting at once
	first.Add(n)
	for range n {
		all.Go(func() {
			tried := sync.OnceFunc(first.Done)
			for ctx.Err() == nil {
				a.one(act, gate, tried)
			}
			tried()
		})
	}
	first.Wait()
	a.report()
	<-ctx.Done()
	all.Wait()
	a.report()
}

func (a *attacking) report() {
	_ = json.NewEncoder(os.Stdout).Encode(tally{a.connected.Load(), a.failed.Load(), a.cut.Load()})
}

// act attacks over one connection: it calls reached when that came as far as it shall, and returns when it was cut.
type act func(c net.Conn, reached func())

// one makes one connection.
func (a *attacking) one(act act, gate chan struct{}, tried func()) {
	gate <- struct{}{}
	came := false
	pass := sync.OnceFunc(func() {
		<-gate
		tried()
	})
	defer pass()
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.failed.Add(1)
		return
	}
	defer c.Close()
	defer context.AfterFunc(a.ctx, func() { c.Close() })()
	act(c, func() {
		came = true
		a.connected.Add(1)
		pass()
	})
	switch {
	case !came:
		a.failed.Add(1)
	case a.ctx.Err() == nil:
		a.cut.Add(1)
	}
}

// silent says nothing.
func (a *attacking) silent(c net.Conn, reached func()) {
	reached()
	_, _ = io.Copy(io.Discard, c)
}

// leave goes at once.
func (a *attacking) leave(_ net.Conn, reached func()) { reached() }

// overTLS does the handshake first.
func overTLS(next act) act {
	return func(c net.Conn, reached func()) {
		secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		if secure.Handshake() == nil {
			next(secure, reached)
		}
	}
}

// slow sends a byte of a header in a second.
func (a *attacking) slow(c net.Conn, reached func()) {
	_, err := io.WriteString(c, "GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nX: ")
	reached()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for err == nil {
		<-tick.C
		_, err = io.WriteString(c, "x")
	}
}

// requests asks for the tunnel with a wrong token, without waiting for answers.
func (a *attacking) requests(c net.Conn, reached func()) {
	reached()
	go func() { _, _ = io.Copy(io.Discard, c) }()
	request := strings.Repeat("GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n", 100)
	for {
		if _, err := io.WriteString(c, request); err != nil {
			return
		}
	}
}

// halfway sends the first message of a TLS handshake, takes the answer that costs the server most, and goes.
func (a *attacking) halfway(c net.Conn, reached func()) {
	if _, err := c.Write(a.hello); err != nil {
		return
	}
	if _, err := io.ReadFull(c, make([]byte, 200)); err == nil {
		reached()
	}
}

// clientHello is the first message of a TLS 1.3 client.
func clientHello() []byte {
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		_ = tls.Client(near, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}).Handshake()
		near.Close()
	}()
	b := make([]byte, 16<<10)
	n, err := far.Read(b)
	if err != nil {
		panic(err)
	}
	return b[:n]
}
