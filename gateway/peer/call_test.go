package peer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/peer"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

var tunnelID = link.ID{1, 2, 3}

func call() peer.Call {
	return peer.Call{Tunnel: tunnelID, Token: token, Certificate: []byte{0x30, 0, 1, 0xff}, Client: "192.0.2.7", Via: "b"}
}

// transfer is a handshake for tunnelID as Handshake.Transfer makes it.
func transfer() []byte {
	b := make([]byte, 37+66)
	b[0] = 1
	p := b[37:]
	binary.BigEndian.PutUint16(p, link.Version)
	binary.BigEndian.PutUint32(p[2:], 1<<20)
	binary.BigEndian.PutUint32(p[6:], 1<<18)
	copy(p[10:], tunnelID[:])
	p[33] = 2
	return b
}

// twoPorts are an owner that admits by admit, and one that calls.
func twoPorts(t *testing.T, admit func(ctx context.Context, c peer.Call) (func(link.Conn, *link.Handshake), error), timeout time.Duration) (owner, caller *port) {
	file := secretFile(t, secret)
	return startPort(t, peer.Config{SecretFile: file, Replica: "a/1", Name: "a", Admit: admit}),
		startPort(t, peer.Config{SecretFile: file, Replica: "b/1", Name: "b", Admit: nobody, Timeout: timeout})
}

// Whatever the owner answers reaches the caller with code, delay and quota.
func TestAnswersReachTheCaller(t *testing.T) {
	var said error
	owner, caller := twoPorts(t, func(context.Context, peer.Call) (func(link.Conn, *link.Handshake), error) {
		if said == nil {
			panic("a fault in the owner")
		}
		return nil, said
	}, 0)
	for _, e := range []*errs.Error{
		errs.New(errs.TunnelUnknown, "no such tunnel"), errs.New(errs.TokenExpired, "expired at noon"), errs.New(errs.TokenRevoked, "revoked"),
		errs.New(errs.Displaced, "a newer lane"), errs.New(errs.Draining, "draining").After(3 * time.Second), errs.New(errs.TunnelLimit, "full").Within(3, 0, time.Minute),
	} {
		said = e
		_, err := caller.Dial(t.Context(), owner.address(), "a/1", call(), transfer())
		require.ErrorIs(t, err, e.Code)
		got := errs.From(err)
		require.Contains(t, got.Message, e.Message)
		require.Equal(t, e.RetryAfter, got.RetryAfter)
		require.Equal(t, e.Quota, got.Quota)
		require.NotContains(t, err.Error(), "a-token-of-alice")
	}
	said = errors.New("a secret of the owner's")
	_, err := caller.Dial(t.Context(), owner.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.Internal)
	require.NotContains(t, err.Error(), "a secret")
	said = nil
	_, err = caller.Dial(t.Context(), owner.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.Internal)
	require.NotContains(t, err.Error(), "fault in the owner")
	said = errs.New(errs.TunnelUnknown, "still here")
	_, err = caller.Dial(t.Context(), owner.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.TunnelUnknown, "after a panic")
}

// A call for another replica, one whose handshake is for another tunnel or is none, and one that is too large are refused before anybody is
// asked about them.
func TestCallsThatAreRefusedUnseen(t *testing.T) {
	owner, caller := twoPorts(t, func(context.Context, peer.Call) (func(link.Conn, *link.Handshake), error) {
		t.Error("somebody was asked")
		return nil, errs.Internal
	}, 0)
	wrong := transfer()
	wrong[37+10] ^= 1
	with := func(change func(*peer.Call)) peer.Call {
		c := call()
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		replica  string
		call     peer.Call
		transfer []byte
		code     errs.Code
	}{
		"another replica":       {"a/0", call(), transfer(), errs.OwnerGone},
		"another tunnel":        {"a/1", call(), wrong, errs.ProtocolViolation},
		"no handshake":          {"a/1", call(), nil, errs.ProtocolViolation},
		"half a handshake":      {"a/1", call(), transfer()[:80], errs.ProtocolViolation},
		"a huge handshake":      {"a/1", call(), make([]byte, link.MaxTransfer+1), errs.BadRequest},
		"a huge token":          {"a/1", with(func(c *peer.Call) { c.Token = strings.Repeat("x", 17<<10) }), transfer(), errs.BadRequest},
		"a token of two lines":  {"a/1", with(func(c *peer.Call) { c.Token = "x\r\nFairlead-Via: y" }), transfer(), errs.BadRequest},
		"a huge certificate":    {"a/1", with(func(c *peer.Call) { c.Certificate = make([]byte, 17<<10) }), transfer(), errs.BadRequest},
		"a long name of client": {"a/1", with(func(c *peer.Call) { c.Client = strings.Repeat("x", 256) }), transfer(), errs.BadRequest},
	} {
		_, err := caller.Dial(t.Context(), owner.address(), c.replica, c.call, c.transfer)
		require.ErrorIs(t, err, c.code, name)
	}
}

// The largest of everything gets through, and so does next to nothing.
func TestCallsOfAnySize(t *testing.T) {
	got := make(chan peer.Call, 1)
	owner, caller := twoPorts(t, func(ctx context.Context, c peer.Call) (func(link.Conn, *link.Handshake), error) {
		got <- c
		return nobody(ctx, c)
	}, 0)
	large := peer.Call{Tunnel: tunnelID, Token: strings.Repeat("x", 16<<10), Certificate: make([]byte, 16<<10), Client: strings.Repeat("ä", 127), Via: strings.Repeat("\n", 255)}
	for _, c := range []struct {
		peer.Call
		transfer []byte
	}{{large, append(transfer(), make([]byte, link.MaxTransfer-len(transfer()))...)}, {peer.Call{Tunnel: tunnelID}, transfer()}} {
		_, err := caller.Dial(t.Context(), owner.address(), "", c.Call, c.transfer)
		require.ErrorIs(t, err, errs.TunnelUnknown)
		require.Equal(t, c.Call, <-got)
	}
}

// A replica that hangs, wherever it does, costs the caller no more than its time; one that is cancelled costs less.
func TestOwnersThatHang(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	owner, caller := twoPorts(t, func(ctx context.Context, c peer.Call) (func(link.Conn, *link.Handshake), error) {
		select {
		case <-ctx.Done():
		case <-never:
		}
		return nobody(ctx, c)
	}, 100*time.Millisecond)
	_, err := caller.Dial(t.Context(), owner.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.OwnerUnreachable)
	require.ErrorContains(t, err, "in time")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and says nothing
	require.NoError(t, err)
	defer silent.Close()
	_, err = caller.Dial(t.Context(), silent.Addr().String(), "", call(), transfer())
	require.ErrorIs(t, err, errs.OwnerUnreachable)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = caller.Dial(ctx, owner.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.Canceled)
	require.NoError(t, silent.Close())
	_, err = caller.Dial(t.Context(), silent.Addr().String(), "", call(), transfer())
	require.ErrorIs(t, err, errs.OwnerUnreachable)
}
