package testbed

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// session is one session channel of the embedded server: at most one program runs in it.
type session struct {
	channel ssh.Channel
	env     []string
	mu      sync.Mutex
	process *os.Process // while a program runs
	started bool
	tasks   sync.WaitGroup
}

// serveSession answers the requests of one session channel until it closes, and waits for what it started.
func serveSession(ctx context.Context, incoming ssh.NewChannel) {
	channel, requests, err := incoming.Accept()
	if err != nil {
		return
	}
	s := &session{channel: channel}
	stop := context.AfterFunc(ctx, func() { _ = channel.Close() })
	defer stop()
	for request := range requests {
		ok := s.handle(request)
		if request.WantReply {
			_ = request.Reply(ok, nil) // a connection that broke ends the loop
		}
	}
	s.signal(syscall.SIGKILL) // the client has left: nothing waits for the program any more
	s.tasks.Wait()
}

func (s *session) handle(request *ssh.Request) bool {
	switch request.Type {
	case "env":
		var v struct{ Name, Value string }
		if ssh.Unmarshal(request.Payload, &v) != nil {
			return false
		}
		s.env = append(s.env, v.Name+"="+v.Value)
		return true
	case "exec":
		var v struct{ Command string }
		return ssh.Unmarshal(request.Payload, &v) == nil && s.run("-c", v.Command)
	case "shell":
		return s.run()
	case "subsystem":
		var v struct{ Name string }
		return ssh.Unmarshal(request.Payload, &v) == nil && v.Name == "sftp" && s.serveSFTP()
	case "signal":
		var v struct{ Name string }
		return ssh.Unmarshal(request.Payload, &v) == nil && s.signal(signals(v.Name))
	}
	return false // a terminal among others: a client that asked for one goes on without
}

// run starts the user's shell with args, once.
func (s *session) run(args ...string) bool {
	if s.started {
		return false
	}
	shell := os.Getenv("SHELL")
	if shell == "" {
		shell = "/bin/sh"
	}
	cmd := exec.Command(shell, args...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = s.channel, s.channel.Stderr()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if home, err := os.UserHomeDir(); err == nil {
		cmd.Dir = home
	}
	stdin, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return false
	}
	s.started = true
	s.mu.Lock()
	s.process = cmd.Process
	s.mu.Unlock()
	s.tasks.Go(func() {
		_, _ = io.Copy(stdin, s.channel) // ends with the client's EOF, with the channel, or when the program reads no more
		_ = stdin.Close()
	})
	s.tasks.Go(func() { s.finish(cmd.Wait()) })
	return true
}

// finish tells the client how the program ended, and closes the channel.
func (s *session) finish(result error) {
	s.mu.Lock()
	s.process = nil
	s.mu.Unlock()
	var exit *exec.ExitError
	status := uint32(0)
	switch {
	case errors.As(result, &exit) && exit.ExitCode() >= 0:
		status = uint32(exit.ExitCode())
	case errors.As(result, &exit):
		status = 128 + uint32(exit.Sys().(syscall.WaitStatus).Signal()) // as a shell says it
	case result != nil:
		status = 1
	}
	s.end(status)
}

// end sends the exit status and closes the channel. Errors mean that the client is gone.
func (s *session) end(status uint32) {
	_ = s.channel.CloseWrite()
	_, _ = s.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
	_ = s.channel.Close()
}

func (s *session) serveSFTP() bool {
	if s.started {
		return false
	}
	server, err := sftp.NewServer(s.channel)
	if err != nil {
		return false
	}
	s.started = true
	s.tasks.Go(func() {
		status := uint32(0)
		if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
			status = 1
		}
		s.end(status)
		_ = server.Close()
	})
	return true
}

// signal reaches the program with all that it started; false when none runs or the signal is unknown.
func (s *session) signal(sig syscall.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process != nil && sig != 0 && syscall.Kill(-s.process.Pid, sig) == nil
}

// signals maps the names of RFC 4254 section 6.10; 0 for others.
func signals(name string) syscall.Signal {
	switch name {
	case "HUP":
		return syscall.SIGHUP
	case "INT":
		return syscall.SIGINT
	case "QUIT":
		return syscall.SIGQUIT
	case "KILL":
		return syscall.SIGKILL
	case "TERM":
		return syscall.SIGTERM
	case "USR1":
		return syscall.SIGUSR1
	case "USR2":
		return syscall.SIGUSR2
	}
	return 0
}
