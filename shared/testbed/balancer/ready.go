package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

const okStatus = http.StatusOK

// askReady asks for /readyz over a fresh connection.
func askReady(ctx context.Context, conn net.Conn, host string) (status int, err error) {
	if at, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(at); err != nil {
			return 0, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // as the kubelet: the address is all that is known
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	request.Close = true
	if err := request.Write(secure); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(secure), request)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}
