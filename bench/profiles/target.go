package profiles

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
)

// What a connection's first byte asks for.
const (
	echo = 'e' // every byte comes back
	bulk = 'b' // lines of a log come, for ever
)

// startTarget starts the backend.
func (s *site) startTarget() (address string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	s.stops = append(s.stops, func() error {
		err := l.Close()
		tasks.Wait() // the gateway, stopped before, has closed the connections
		return err
	})
	return l.Addr().String(), nil
}

func serve(c net.Conn) {
	kind := make([]byte, 1)
	if _, err := io.ReadFull(c, kind); err != nil {
		return
	}
	if kind[0] == echo {
		_, _ = io.Copy(c, c)
		return
	}
	for page := 0; ; page++ {
		if _, err := io.WriteString(c, logPage(page)); err != nil {
			return
		}
	}
}

// logPage is some lines of a log, as the bulk of many applications is: alike, and not the same.
func logPage(page int) string {
	var b strings.Builder
	for i := range 200 {
		n := page*200 + i
		fmt.Fprintf(&b, `{"time":"2026-11-24T09:%02d:%02d.%06dZ","level":"info","msg":"order shipped","order":%d,"ms":%d,"warehouse":"w%d"}`+"\n",
			n/60%60, n%60, n*7919%1000000, n*104729%10000000, n*31%997, n%17)
	}
	return b.String()
}
