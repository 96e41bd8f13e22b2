package e2e

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
)

// ingressStarter starts a program that people put before a gateway.
type ingressStarter func(testbed.TB, testbed.IngressConfig) *testbed.Ingress

func eachIngress(t *testing.T, test func(*testing.T, ingressStarter)) {
	t.Run("nginx", func(t *testing.T) { test(t, testbed.NewNginx) })
	t.Run("HAProxy", func(t *testing.T) { test(t, testbed.NewHAProxy) })
}

// withIngress puts an ingress before the gateway. It ends the sidecar's TLS and begins its own, unless the gateway has
// none.
func withIngress(start ingressStarter, change func(*testbed.IngressConfig)) option {
	return func(w *world) {
		w.inner = testbed.NewProxy(w.t, "127.0.0.1:1") // the gateway's address is known once it listens
		w.afterwards = append(w.afterwards, func() {
			cert, err := w.ca.Issue(testbed.CertificateConfig{Name: "ingress"})
			require.NoError(w.t, err)
			cfg := testbed.IngressConfig{Certificate: cert, Upstreams: []string{w.inner.Addr()}}
			if !w.gatewayConfig.TLS.Disabled {
				cfg.UpstreamCA = w.ca.CertFile()
			}
			if change != nil {
				change(&cfg)
			}
			w.ingress = start(w.t, cfg)
			w.proxy.SetTarget(w.ingress.Addr())
		})
	}
}

// cutOff lets the gateway be unreachable for the ingress, which goes on to answer.
func (w *world) cutOff() { leadNowhere(w.inner) }

// leadNowhere ends what goes through a proxy, now and from now on.
func leadNowhere(way *fault.Proxy) {
	way.SetTarget("127.0.0.1:1")
	way.Cut()
}

// typist is a person at a shell, by OpenSSH's client on a terminal.
type typist struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	screen *logs
	ended  chan struct{} // closed once ssh has been waited for
	lines  int
}

// login opens a shell of w.ssh through a listener of the sidecar.
func (w *world) login(listener string) *typist {
	w.t.Helper()
	cfg := w.sshConfig(map[string][]string{"box": w.sshThrough(listener)})
	p := &typist{t: w.t, cmd: exec.Command("ssh", "-F", cfg, "-tt", "box", "PS1='ready> ' exec sh"), screen: newLogs(w.t, "the terminal"),
		ended: make(chan struct{})}
	var err error
	p.in, err = p.cmd.StdinPipe()
	require.NoError(w.t, err)
	p.cmd.Stdout, p.cmd.Stderr = p.screen, p.screen
	require.NoError(w.t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // the exit code tells
	}()
	w.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended when the test has passed
		<-p.ended
	})
	p.sees("ready> ")
	return p
}

func (p *typist) sees(text string) {
	p.t.Helper()
	await(p.t, "the screen shows "+text, func() bool { return strings.Contains(p.screen.text(), text) })
}

// works types a line and waits for the answer.
func (p *typist) works() {
	p.t.Helper()
	p.lines++
	_, err := fmt.Fprintf(p.in, "echo answer $((%d * 111))\n", p.lines)
	require.NoError(p.t, err)
	p.sees(fmt.Sprintf("answer %d\r", p.lines*111))
}

// leaves ends the shell in good order.
func (p *typist) leaves() {
	p.t.Helper()
	_, err := io.WriteString(p.in, "exit 3\n")
	require.NoError(p.t, err)
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatal("ssh does not end")
	}
	assert.Equal(p.t, 3, p.cmd.ProcessState.ExitCode())
}

// busily makes transfers both ways, one after the other and two at a time, until it is told to stop; then it returns the
// first error and how many were made.
func (w *world) busily(listener string, size int64) (stop func() (int, error)) {
	addr := w.sidecar.addr(w.t, listener)
	ctx, cancel := context.WithTimeout(w.t.Context(), 3*patience)
	group, ctx := errgroup.WithContext(ctx)
	enough := make(chan struct{})
	var made [2]int
	for worker := range made {
		group.Go(func() error {
			for {
				if err := transferBoth(ctx, addr, uint64(100*worker+made[worker]), size, size); err != nil {
					return fmt.Errorf("transfer %d of %d: %w", made[worker], worker, err)
				}
				made[worker]++
				select {
				case <-enough:
					return nil
				default:
				}
			}
		})
	}
	return func() (int, error) {
		close(enough)
		err := group.Wait()
		cancel()
		return made[0] + made[1], err
	}
}

// Everything works through an ingress, whether it has TLS to the gateway or not.
//
// Verifies: R10.2, R10.6
func TestThroughAnIngress(t *testing.T) {
	const size = 3 << 20
	eachIngress(t, func(t *testing.T, start ingressStarter) {
		for name, tls := range map[string]gatewayconfig.TLS{"TLS on both sides": {}, "TLS to the ingress": {Disabled: true}} {
			t.Run(name, func(t *testing.T) {
				hashes := newTracked(t, hashing)
				w := newWorld(t, withSSHD(), withTarget("hash", hashes.addr), withIngress(start, nil), func(w *world) {
					if tls.Disabled {
						w.gatewayConfig.TLS = tls
					}
				})
				person := w.login(sshRoute)
				person.works()
				require.NoError(t, transferBoth(t.Context(), w.sidecar.addr(t, "hash"), 1, size, size))
				w.cutAndResume()
				person.works()
				person.leaves()
				require.Empty(t, hashes.errors())
				require.Empty(t, w.sidecar.logs.find("connection refused"))
			})
		}
	})
}

// An ingress reloads (its old workers have a moment to finish), is restarted, and crashes, each time under transfers both
// ways and with a person at a shell. Nobody notices.
//
// Verifies: R1.7, R10.4, R10.5, R10.6
func TestAnIngressReloadsRestartsAndCrashes(t *testing.T) {
	const size = 1 << 20
	eachIngress(t, func(t *testing.T, start ingressStarter) {
		hashes := newTracked(t, hashing)
		w := newWorld(t, withSSHD(), withTarget("hash", hashes.addr),
			withIngress(start, func(c *testbed.IngressConfig) { c.Grace = 200 * time.Millisecond }))
		began, usual := w.waitConnected(1), w.ingress.Workers()
		person := w.login(sshRoute)
		stop := w.busily("hash", size)
		again := func(end func()) {
			end()
			require.NoError(t, w.ingress.Start(t.Context()))
			w.proxy.SetTarget(w.ingress.Addr())
		}
		for _, what := range []struct {
			name string
			do   func()
		}{
			{"reload", func() { require.NoError(t, w.ingress.Reload(t.Context(), nil)) }},
			{"restart", func() { again(w.ingress.Stop) }},
			{"reload again", func() { require.NoError(t, w.ingress.Reload(t.Context(), nil)) }},
			{"crash", func() { again(w.ingress.Kill) }},
		} {
			person.works()
			before := w.resumes()
			what.do()
			await(t, what.name+": the tunnel resumes", func() bool { return w.resumes() > before && len(w.connected()) == 1 })
			await(t, what.name+": the old workers end", func() bool { return w.ingress.Workers() == usual })
			person.works()
		}
		made, err := stop()
		require.NoError(t, err)
		person.leaves()
		t.Logf("%d transfers, %d resumes", made, w.resumes())
		require.Empty(t, hashes.errors(), "no connection of a target was lost")
		require.Equal(t, began, w.connected(), "the tunnel is that of the beginning")
		await(t, "each end is logged", func() bool { return len(w.sidecar.logs.find("connection ended")) == made+1 })
		for _, e := range w.sidecar.logs.find("connection ended") {
			require.Empty(t, e.str("code"), e)
		}
		w.waitQuiet()
	})
}

func containsAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}
