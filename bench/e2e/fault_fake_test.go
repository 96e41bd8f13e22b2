package e2e

import (
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
)

// fakeGateway makes a tunnel with whoever comes, and then only listens, to tell how the WebSocket ends.
type fakeGateway struct {
	addr  net.Addr
	ended chan error // of the first WebSocket
}

func newFakeGateway(t *testing.T) *fakeGateway {
	t.Helper()
	g := &fakeGateway{ended: make(chan error, 1)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{link.Subprotocol}}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		err = g.serve(ws)
		select {
		case g.ended <- err:
		default:
		}
	}))
	t.Cleanup(server.Close)
	g.addr = server.Listener.Addr()
	require.NotNil(t, g.addr)
	return g
}

func (g *fakeGateway) serve(ws *websocket.Conn) error {
	challenge := make([]byte, frameHeader+32)
	challenge[0] = frameChallenge
	if err := ws.WriteMessage(websocket.BinaryMessage, challenge); err != nil {
		return err
	}
	if _, _, err := ws.ReadMessage(); err != nil {
		return err
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, welcome()); err != nil {
		return err
	}
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			return err
		}
	}
}

// welcome makes a WELCOME of a gateway named "fake".
func welcome() []byte {
	f := make([]byte, frameHeader)
	f[0] = frameWelcome
	f = binary.BigEndian.AppendUint16(f, link.Version)
	f = binary.BigEndian.AppendUint32(f, 1<<20)
	f = binary.BigEndian.AppendUint32(f, 256<<10)
	f = append(f, make([]byte, 16+32)...) // tunnel and key
	f = binary.BigEndian.AppendUint32(f, 30_000)
	f = binary.BigEndian.AppendUint32(f, 60_000)
	return append(binary.BigEndian.AppendUint16(f, 4), "fake"...)
}
