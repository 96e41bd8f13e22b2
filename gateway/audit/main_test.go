package audit

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {

		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// open opens a log in the file, and closes it at the end of the test.
func open(t testing.TB, file string, adjust ...func(*Config)) *Log {
	t.Helper()
	cfg := Config{File: file, Instance: "gw-0", Sync: SyncNone}
	for _, f := range adjust {
		f(&cfg)
	}
	l, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { shut(t, l) })
	return l
}

func shut(t testing.TB, l *Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, l.Close(ctx))
}

func sample() Event {
	return Event{Action: Close, Result: Allowed, Actor: "system:serviceaccount:payments:api", Issuer: "https://kubernetes.default.svc.cluster.local",
		TokenID: "6f1c", Tenant: "payments/api", Pod: "api-7d9f-x2x", Client: "10.1.2.3:40112", Route: "orders-db", Backend: "bastion",
		Sent: 18234, Received: 9123, Duration: 1534 * time.Millisecond, Tunnel: "3b7e", Stream: "17", Trace: "4bf92f3577b34da6a3ce929d0e0e4736"}
}

// readLines are the lines of a file without their newlines.
func readLines(t testing.TB, file string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
}
