package testbed

import (
	"context"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"
)

// serveForward bridges one direct-tcpip channel (RFC 4254 section 7.2), keeping half-closed directions.
func serveForward(ctx context.Context, incoming ssh.NewChannel) {
	var target struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(incoming.ExtraData(), &target); err != nil {
		_ = incoming.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	addr := net.JoinHostPort(target.Host, strconv.FormatUint(uint64(target.Port), 10))
	dialer := net.Dialer{Timeout: handshakeTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		_ = incoming.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	channel, requests, err := incoming.Accept()
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() {
		_ = channel.Close()
		_ = conn.Close()
	})
	defer stop()
	var tasks sync.WaitGroup
	tasks.Go(func() {
		ssh.DiscardRequests(requests) // ends when the channel is closed, by whichever side
		_ = conn.Close()
	})
	var copies sync.WaitGroup
	copies.Go(func() {
		_, _ = io.Copy(conn, channel)
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	copies.Go(func() {
		_, _ = io.Copy(channel, conn)
		_ = channel.CloseWrite()
	})
	copies.Wait()
	_ = channel.Close()
	tasks.Wait()
}
