package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/fasthttp/websocket"

	"fairlead/shared/link"
)

// fakeGateway makes a tunnel with whoever comes, by the code of the link alone, and tells how the WebSocket ends.
type fakeGateway struct {
	addr net.Addr
	told chan *websocket.CloseError // of the first WebSocket
}

func newFakeGateway(t *testing.T) *fakeGateway {
	t.Helper()
	g := &fakeGateway{told: make(chan *websocket.CloseError, 1)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{link.Subprotocol}}
		if ws, err := up.Upgrade(w, r, nil); err == nil {
			defer ws.Close()
			g.serve(r, &rawLane{ws: ws, told: g.told})
		}
	}))
	t.Cleanup(server.Close)
	g.addr = server.Listener.Addr()
	return g
}

// serve runs the gateway's end of a tunnel until the sidecar leaves.
func (g *fakeGateway) serve(r *http.Request, conn *rawLane) {
	hs, err := link.Greet(r.Context(), conn)
	if err != nil {
		return
	}
	tun, lane, err := hs.Accept(link.Config{})
	if err != nil {
		return
	}
	_ = lane.Run() // the close frame is what counts
	tun.Close(nil)
	tun.Wait()
}
