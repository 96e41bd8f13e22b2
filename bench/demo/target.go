package demo

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// page is what the target answers.
const page = "Hello from behind the bastion. The gateway reached this page through its SSH connection to the backend.\n"

// target is a web server that only the SSH server is meant to reach.
type target struct {
	listener net.Listener
	server   http.Server
	served   chan error
}

func startTarget() (*target, error) {
	l, err := net.Listen("tcp", at(0))
	if err != nil {
		return nil, err
	}
	t := &target{listener: l, served: make(chan error, 1)}
	t.server = http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, page) // a client that went away has no use for it
	})}
	go func() { t.served <- t.server.Serve(l) }()
	return t, nil
}

func (t *target) addr() string { return t.listener.Addr().String() }

func (t *target) stop(context.Context) error {
	err := t.server.Close()
	if served := <-t.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
