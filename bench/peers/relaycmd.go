package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// relayBuffer is the size of each read and write of the bare relay, in bytes.
const relayBuffer = 128 << 10

// Listening is the first line on standard output of the bench's own servers, as JSON.
type Listening struct {
	Address string `json:"address"`
}

// RelayCommand is the hidden command that runs one side of the bare relay. It ends with its standard input, with a
// signal or with its parent.
func RelayCommand() *cobra.Command {
	var r relay
	cmd := &cobra.Command{
		Use: "relay", Short: "Run one side of the bare relay", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.target, "target", "", "host:port to connect to")
	flags.StringVar(&r.cert, "cert", "", "certificate file: accept TLS")
	flags.StringVar(&r.key, "key", "", "key file of the certificate")
	flags.StringVar(&r.ca, "ca", "", "authority file: connect with TLS")
	return cmd
}

// relay copies between each accepted connection and one to the target.
type relay struct {
	target, cert, key, ca string
	dialTLS               *tls.Config
}

// halfCloser is a connection whose sending direction can be ended alone: *net.TCPConn and *tls.Conn.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (r *relay) run(ctx context.Context, in io.Reader, out io.Writer) error {
	listenTLS, err := r.load()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		_ = l.Close() // the parent is done; the process ends and takes its connections along
	}()
	if err := json.NewEncoder(out).Encode(Listening{l.Addr().String()}); err != nil {
		return errors.Join(err, l.Close())
	}
	return r.accept(l, listenTLS)
}

func (r *relay) accept(l net.Listener, listenTLS *tls.Config) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		near := conn.(halfCloser)
		if listenTLS != nil {
			near = tls.Server(conn, listenTLS)
		}
		go r.bridge(near)
	}
}

// load reads the TLS files; both sides speak TLS 1.3 in records of full size.
func (r *relay) load() (listen *tls.Config, err error) {
	if r.cert != "" {
		cert, err := tls.LoadX509KeyPair(r.cert, r.key)
		if err != nil {
			return nil, err
		}
		listen = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
	}
	if r.ca != "" {
		pem, err := os.ReadFile(r.ca)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", r.ca)
		}
		r.dialTLS = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: loopback, DynamicRecordSizingDisabled: true}
	}
	return listen, nil
}

// bridge carries one connection until both directions have ended.
func (r *relay) bridge(near halfCloser) {
	defer near.Close()
	conn, err := net.DialTimeout("tcp", r.target, 10*time.Second)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	far := conn.(halfCloser)
	if r.dialTLS != nil {
		far = tls.Client(conn, r.dialTLS)
	}
	defer far.Close()
	var back sync.WaitGroup
	back.Go(func() { pump(near, far) })
	pump(far, near)
	back.Wait()
}

// pump copies with plain reads and writes: io.Copy between two TCP connections would have the kernel move the bytes
// (splice), which no program that encrypts can do, and would so be no reference.
func pump(to, from halfCloser) {
	buf := make([]byte, relayBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				break
			}
		}
		if errors.Is(err, io.EOF) {
			if to.CloseWrite() == nil {
				return // the other direction goes on
			}
			break
		}
		if err != nil {
			break
		}
	}
	_ = from.Close()
	_ = to.Close()
}
