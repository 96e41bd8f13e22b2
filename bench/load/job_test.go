package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newServer(t *testing.T) string {
	t.Helper()
	var log bytes.Buffer
	s, err := NewServer(&log)
	require.NoError(t, err)
	t.Cleanup(func() {
		s.Close()
		require.Empty(t, log.String())
	})
	return s.Addr()
}

// perform runs a job that ends by itself.
func perform(t *testing.T, job Job) Outcome {
	t.Helper()
	out, err := dispatch(t.Context(), job, func() error { return errors.New("has nothing to be ready for") })
	require.NoError(t, err)
	return out
}

func TestTransfer(t *testing.T) {
	addr := newServer(t)
	for _, up := range []bool{true, false} {
		for _, streams := range []int{1, 5} {
			out := perform(t, Job{Kind: Transfer, Addr: addr, Streams: streams, Bytes: 5 << 20, Up: up})
			require.EqualValues(t, 5<<20, out.Bytes)
			require.Positive(t, out.MBPerSecond())
		}
	}
	_, err := dispatch(t.Context(), Job{Kind: Transfer, Addr: addr, Streams: 0, Bytes: 1}, nil)
	require.Error(t, err)
}

func TestOpens(t *testing.T) {
	out := perform(t, Job{Kind: Opens, Addr: newServer(t), Workers: 8, Count: 100})
	require.Equal(t, 100, out.Count)
	require.Positive(t, out.Latency.P50)
	require.LessOrEqual(t, out.Latency.P50, out.Latency.P99)
}

func TestSteady(t *testing.T) {
	addr := newServer(t)
	for _, up := range []bool{true, false} {
		out := perform(t, Job{Kind: Steady, Addr: addr, Up: up, Warmup: 50 * time.Millisecond, Duration: 400 * time.Millisecond})
		require.Positive(t, out.Bytes)
		require.Positive(t, out.Seconds, "from what arrived first in this time to what arrived last: less on a busy machine")
		require.Less(t, out.Seconds, 10.0)
	}
}

func TestEcho(t *testing.T) {
	out := perform(t, Job{Kind: Echo, Addr: newServer(t), Duration: 50 * time.Millisecond, Pause: time.Millisecond})
	require.Positive(t, out.Count)
	require.Positive(t, out.Latency.P50)
}

func TestUnknownKind(t *testing.T) {
	_, err := dispatch(t.Context(), Job{Kind: "dance"}, nil)
	require.ErrorContains(t, err, "dance")
}

func TestLastingJobsEndWithTheirInput(t *testing.T) {
	addr := newServer(t)
	for _, job := range []Job{
		{Kind: Hold, Addr: addr, Workers: 4, Count: 20},
		{Kind: Bulk, Addr: addr, Streams: 2, Up: true, Down: true, Warmup: 20 * time.Millisecond},
	} {
		t.Run(string(job.Kind), func(t *testing.T) {
			in, end := io.Pipe()
			lines, out := io.Pipe()
			ended := make(chan error, 1)
			go func() { ended <- runJob(t.Context(), job, in, json.NewEncoder(out)) }()
			events := json.NewDecoder(lines)
			var e event
			require.NoError(t, events.Decode(&e))
			require.True(t, e.Ready)
			require.NoError(t, end.Close())
			require.NoError(t, events.Decode(&e))
			require.NoError(t, <-ended)
			require.NotNil(t, e.Outcome)
			require.Equal(t, job.Count, e.Outcome.Count)
		})
	}
}

func TestServerGivesNoReceiptForWrongContent(t *testing.T) {
	var log lockedBuffer
	s, err := NewServer(&log)
	require.NoError(t, err)
	defer s.Close()
	conn, release, err := connect(t.Context(), s.Addr())
	require.NoError(t, err)
	defer release()
	_, err = conn.Write(header{opUpload, 7, 10}.encode())
	require.NoError(t, err)
	_, err = conn.Write(content(8, 10))
	require.NoError(t, err)
	_, err = readCount(conn)
	require.Error(t, err)
	s.Close()
	require.Contains(t, log.String(), errContent.Error())
}

func TestServerRefusesWhatIsNoLoad(t *testing.T) {
	var log lockedBuffer
	s, err := NewServer(&log)
	require.NoError(t, err)
	defer s.Close()
	for _, first := range []string{strings.Repeat("x", headerSize), string(header{op: '?'}.encode())} {
		conn, err := net.Dial("tcp", s.Addr())
		require.NoError(t, err)
		_, err = io.WriteString(conn, first)
		require.NoError(t, err)
		_, err = io.ReadAll(conn)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	s.Close()
	require.Contains(t, log.String(), "not with the load protocol")
	require.Contains(t, log.String(), "unknown operation")
}

func TestDownloadSeesWrongContent(t *testing.T) {
	for name, answer := range map[string][]byte{
		"too short": content(1, 500),
		"too long":  content(1, 1500),
		"changed":   content(2, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			addr := liar(t, answer)
			require.ErrorIs(t, download(t.Context(), addr, 1, 1000), errContent)
		})
	}
}

func TestAwaitEchoGivesUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, AwaitEcho(ctx, liar(t, []byte("no echo"))), context.DeadlineExceeded)
}

// liar is a server that answers every connection's header with the same bytes and ends it.
func liar(t *testing.T, answer []byte) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, headerSize))
			_, _ = conn.Write(answer)
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}
