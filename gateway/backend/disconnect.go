package backend

import (
	"reflect"
	"unsafe"

	"golang.org/x/crypto/ssh"
)

// The SSH library has no exported way to send SSH_MSG_DISCONNECT (RFC 4253 section 11.1), without which a server logs a
// connection that was ended on purpose like one that broke. This file reaches for the library's own method. The library's
// version is pinned; one in which the method is gone fails to link, one in which its receiver is elsewhere is found by
// mux (and by TestConnectionsEndWithADisconnectMessage) and costs the message only.

// disconnectMsg is SSH_MSG_DISCONNECT.
type disconnectMsg struct {
	Reason   uint32 `sshtype:"1"`
	Message  string
	Language string
}

// byApplication is SSH_DISCONNECT_BY_APPLICATION.
const byApplication = 11

//go:linkname sendMessage golang.org/x/crypto/ssh.(*mux).sendMessage
func sendMessage(mux unsafe.Pointer, msg any) error

// disconnect tells the server that the connection ends on purpose, as far as it can.
func disconnect(c ssh.Conn, message string) {
	if m := mux(c); m != nil {
		_ = sendMessage(m, disconnectMsg{Reason: byApplication, Message: message}) // fails on a connection that is gone
	}
}

// mux finds the library's *mux in its connection; nil when there is none.
func mux(c ssh.Conn) unsafe.Pointer {
	v := reflect.ValueOf(c)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	f := v.Elem().FieldByName("mux")
	if !f.IsValid() || f.Kind() != reflect.Pointer || f.Type().String() != "*ssh.mux" {
		return nil
	}
	return f.UnsafePointer()
}
