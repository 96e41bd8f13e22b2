package load

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"fairlead/bench/peers"
)

// progressEvery is how often the target tells how much it received (opProgress).
const progressEvery = 20 * time.Millisecond

// ServerCommand is the hidden command that runs the target. It tells its address on standard output and ends with its
// standard input.
func ServerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load-server", Short: "Run the target of the load", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := NewServer(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer s.Close()
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(peers.Listening{Address: s.Addr()}); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, cmd.InOrStdin())
			return err
		},
	}
}

// Server is the target: it echoes, takes and sends content as each connection's header asks.
type Server struct {
	l    net.Listener
	log  io.Writer
	mu   sync.Mutex // guards open
	open map[net.Conn]struct{}
	all  sync.WaitGroup
}

// NewServer listens on a loopback port and serves until Close. What goes wrong with a connection is written to log.
func NewServer(log io.Writer) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{l: l, log: log, open: make(map[net.Conn]struct{})}
	s.all.Go(s.accept)
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.l.Addr().String() }

// Close ends the server and every connection, and waits for them.
func (s *Server) Close() {
	_ = s.l.Close()
	s.mu.Lock()
	for conn := range s.open {
		_ = conn.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.all.Wait()
}

func (s *Server) accept() {
	for {
		conn, err := s.l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				fmt.Fprintln(s.log, "load-server:", err)
			}
			return
		}
		if !s.enter(conn) {
			_ = conn.Close()
			return
		}
		s.all.Go(func() {
			defer s.leave(conn)
			if err := serve(conn.(*net.TCPConn)); err != nil && !wentAway(err) {
				fmt.Fprintln(s.log, "load-server:", err)
			}
		})
	}
}

func (s *Server) enter(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return false
	}
	s.open[conn] = struct{}{}
	return true
}

func (s *Server) leave(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
	_ = conn.Close()
}

func serve(conn *net.TCPConn) error {
	first := make([]byte, headerSize)
	if _, err := io.ReadFull(conn, first); err != nil {
		return err
	}
	h, err := parseHeader(first)
	if err != nil {
		return err
	}
	switch h.op {
	case opEcho:
		return serveEcho(conn, first)
	case opUpload:
		return serveUpload(conn, h, nil)
	case opProgress:
		return serveUpload(conn, h, newProgress(conn))
	case opDownload:
		return serveDownload(conn, h)
	}
	return fmt.Errorf("a connection asked for the unknown operation %q", h.op)
}

// serveEcho keeps a small buffer, for there may be ten thousand of it.
func serveEcho(conn *net.TCPConn, buf []byte) error {
	for n := len(buf); ; {
		if _, err := conn.Write(buf[:n]); err != nil {
			return err
		}
		var err error
		if n, err = conn.Read(buf); err != nil {
			return err
		}
	}
}

func serveUpload(conn *net.TCPConn, h header, p *progress) error {
	v := newVerifier(h.seed)
	buf := make([]byte, blockSize)
	for h.length == 0 || v.offset < h.length {
		n, err := conn.Read(buf)
		if err := v.check(buf[:n]); err != nil {
			return err // closing without a receipt tells the client
		}
		if errors.Is(err, io.EOF) && h.length == 0 {
			break
		}
		if err != nil {
			return fmt.Errorf("upload ended after %d of %d bytes: %w", v.offset, h.length, err)
		}
		if err := p.tell(v.offset); err != nil {
			return err
		}
	}
	_, err := conn.Write(binary.BigEndian.AppendUint64(nil, v.offset))
	return err
}

// progress tells a client now and then how much was received.
type progress struct {
	conn *net.TCPConn
	next time.Time
}

func newProgress(conn *net.TCPConn) *progress { return &progress{conn: conn, next: time.Now()} }

func (p *progress) tell(received uint64) error {
	if p == nil {
		return nil
	}
	now := time.Now()
	if now.Before(p.next) {
		return nil
	}
	p.next = now.Add(progressEvery)
	_, err := p.conn.Write(binary.BigEndian.AppendUint64(nil, received))
	return err
}

func serveDownload(conn *net.TCPConn, h header) error {
	if err := send(context.Background(), conn, h); err != nil { // ends with the connection
		return err
	}
	return conn.CloseWrite()
}

// send writes the content of h, all of it or until ctx ends or the receiver is gone. It leaves the direction open: some
// peers do not keep a half-close.
func send(ctx context.Context, conn *net.TCPConn, h header) error {
	s := newSource(h.seed)
	for left := h.length; (h.length == 0 || left > 0) && ctx.Err() == nil; {
		block := s.next()
		if h.length > 0 {
			block = block[:min(uint64(len(block)), left)]
			left -= uint64(len(block))
		}
		if _, err := conn.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// wentAway says whether err is that the other side left, which ends every unlimited transfer.
func wentAway(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || isReset(err)
}
