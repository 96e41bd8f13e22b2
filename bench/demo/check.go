package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	checkTimeout  = time.Minute // of each check
	transferBytes = 8 << 20
	endDelay      = 5 * time.Second // for the output of a killed command to end
)

// check tries what the instructions say, and prints a line for each.
func (d *demo) check(ctx context.Context, out io.Writer) error {
	if _, err := exec.LookPath("ssh"); err != nil {
		return errors.New("the check needs OpenSSH's client: install openssh-client")
	}
	fmt.Fprintln(out)
	for _, c := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"ssh … echo ok", d.checkEcho},
		{fmt.Sprintf("%d MiB to the SSH server and back, by SHA-256", transferBytes>>20), d.checkTransfer},
		{"GET " + d.webURL(), d.checkWeb},
	} {
		began := time.Now()
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		err := c.do(ctx)
		cancel()
		if err != nil {
			fmt.Fprintf(out, "check: %s: FAILED\n", c.what)
			return fmt.Errorf("check: %s: %w", c.what, err)
		}
		fmt.Fprintf(out, "check: %s: ok (%v)\n", c.what, time.Since(began).Round(time.Millisecond))
	}
	return nil
}

func (d *demo) checkEcho(ctx context.Context) error {
	var answer bytes.Buffer
	if err := shell(ctx, d.sshCommand()+" echo ok", nil, &answer); err != nil {
		return err
	}
	if got := answer.String(); got != "ok\n" {
		return fmt.Errorf("it printed %q instead of %q", got, "ok\n")
	}
	return nil
}

// checkTransfer sends random bytes through the SSH connection and compares what comes back.
func (d *demo) checkTransfer(ctx context.Context) error {
	content := make([]byte, transferBytes)
	_, _ = rand.Read(content) // never fails (crypto/rand)
	back := sha256.New()
	if err := shell(ctx, d.sshCommand()+" cat", bytes.NewReader(content), back); err != nil {
		return err
	}
	if want := sha256.Sum256(content); !bytes.Equal(back.Sum(nil), want[:]) {
		return fmt.Errorf("what came back has the SHA-256 %x, what was sent %x", back.Sum(nil), want)
	}
	return nil
}

func (d *demo) checkWeb(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.webURL(), nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, int64(len(page)+1)))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || string(body) != page {
		return fmt.Errorf("it answered %s and %q", answer.Status, body)
	}
	return nil
}

// shell runs a command line as a person would. What it says on standard error becomes part of the error. When ctx ends,
// everything that it started is killed.
func shell(ctx context.Context, line string, in io.Reader, out io.Writer) error {
	var told bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &told
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = endDelay
	if err := cmd.Run(); err != nil {
		return errors.Join(fmt.Errorf("%w: %s", err, strings.TrimSpace(told.String())), ctx.Err())
	}
	return nil
}
