package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// handshakeTimeout is how long a client of the embedded server may take until it has authenticated.
const handshakeTimeout = 10 * time.Second

// EmbeddedConfig says how the embedded server runs.
type EmbeddedConfig struct {
	Dir    string // for keys; must exist
	Listen string // default "127.0.0.1:0"
}

// Embedded is an SSH server inside this process, for machines without sshd. It authenticates one user by public key and
// offers exec, shell, env, signals, the sftp subsystem and direct-tcpip. It refuses a terminal (a client goes on without
// one), agent forwarding and remote forwarding. Keepalive requests are answered.
type Embedded struct {
	*sshFiles
	listener net.Listener
	config   *ssh.ServerConfig
	ctx      context.Context // ends the processes of sessions
	cancel   context.CancelFunc
	tasks    sync.WaitGroup // accepting, connections, their channels
	mu       sync.Mutex     // guards conns and stopped
	conns    map[net.Conn]struct{}
	stopped  bool
}

// StartEmbedded starts the embedded server with keys of its own.
func StartEmbedded(cfg EmbeddedConfig) (*Embedded, error) {
	files, err := newSSHFiles(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("keys of the embedded SSH server: %w", err)
	}
	addr := cfg.Listen
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := files.writeKnownHosts(listener.Addr().String()); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	e := &Embedded{sshFiles: files, listener: listener, conns: make(map[net.Conn]struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.config = &ssh.ServerConfig{
		Config: ssh.Config{
			KeyExchanges: []string{"mlkem768x25519-sha256", "curve25519-sha256"},
			Ciphers:      []string{"aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"},
		},
		PublicKeyCallback: e.authenticate,
		ServerVersion:     "SSH-2.0-fairlead-testbed",
	}
	for _, key := range files.hostKeys {
		e.config.AddHostKey(key)
	}
	e.tasks.Go(e.accept)
	return e, nil
}

func (e *Embedded) authenticate(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if meta.User() == e.user && bytes.Equal(key.Marshal(), e.userKey.PublicKey().Marshal()) {
		return &ssh.Permissions{}, nil
	}
	return nil, fmt.Errorf("user %q may not log in with this key", meta.User())
}

// Addr is "127.0.0.1:port".
func (e *Embedded) Addr() string { return e.listener.Addr().String() }

// Connections counts the open connections.
func (e *Embedded) Connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// KillConnections closes all connections; new ones are still served.
func (e *Embedded) KillConnections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for conn := range e.conns {
		_ = conn.Close() // that it was closed already is as good
	}
	return len(e.conns)
}

// Stop ends the server, its connections and the processes that they started, and waits for all of them.
func (e *Embedded) Stop() {
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	e.cancel()
	_ = e.listener.Close() // errors only say that it is closed
	e.KillConnections()
	e.tasks.Wait()
}

func (e *Embedded) accept() {
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			if e.add(nil) && !errors.Is(err, net.ErrClosed) {
				continue // one connection that ended before it was accepted
			}
			return
		}
		if !e.add(conn) {
			_ = conn.Close()
			return
		}
		e.tasks.Go(func() {
			defer e.remove(conn)
			e.serve(conn)
		})
	}
}

// add registers a connection, or nothing for nil; false when the server is stopping.
func (e *Embedded) add(conn net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return false
	}
	if conn != nil {
		e.conns[conn] = struct{}{}
	}
	return true
}

func (e *Embedded) remove(conn net.Conn) {
	_ = conn.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, conn)
}

// serve runs one connection until the client leaves, and returns when everything of it has ended.
func (e *Embedded) serve(raw net.Conn) {
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return
	}
	conn, channels, requests, err := ssh.NewServerConn(raw, e.config)
	if err != nil {
		return // the client has been told
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	defer conn.Close()
	tasks.Go(func() { ssh.DiscardRequests(requests) }) // answers a keepalive as OpenSSH does: with a failure
	for channel := range channels {
		switch channel.ChannelType() {
		case "session":
			tasks.Go(func() { serveSession(ctx, channel) })
		case "direct-tcpip":
			tasks.Go(func() { serveForward(ctx, channel) })
		default:
			_ = channel.Reject(ssh.UnknownChannelType, "not offered")
		}
	}
}
