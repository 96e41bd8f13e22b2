package link

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func specification(t *testing.T) string {
	b, err := os.ReadFile("PROTOCOL.md")
	require.NoError(t, err)
	return string(b)
}

// The specification has each frame with its number, each close code, and the numbers that the code has.
//
// Verifies: R12.2, R12.10
func TestSpecificationAgreesWithTheCode(t *testing.T) {
	spec := specification(t)
	for kind := range 256 {
		if name := frameType(kind).String(); !strings.HasPrefix(name, "type ") {
			require.Contains(t, spec, fmt.Sprintf("| 0x%02x | %s |", kind, name))
		}
	}
	require.Len(t, regexp.MustCompile(`(?m)^\| 0x\d\d \| `).FindAllString(spec, -1), 15, "AUTH has two rows")
	codes := map[int]bool{}
	for _, code := range errs.Codes() {
		codes[code.Info().Close] = true
	}
	for code := range codes {
		require.Contains(t, spec, fmt.Sprintf("| %d |", code))
	}
	thousands := func(n int) string { return fmt.Sprintf("%d,%03d", n/1000, n%1000) }
	for what, text := range map[string]string{
		"subprotocol": Subprotocol,
		"payload":     "at most " + thousands(MaxPayload) + " bytes",
		"messages":    "at least " + thousands(minMessage),
		"token":       "1 to " + thousands(maxToken) + " bytes",
		"texts":       "at most " + thousands(maxMessage) + " bytes",
		"entry":       fmt.Sprintf("An entry is %d bytes", syncEntrySize),
		"entries":     "at most " + thousands(syncChunk) + " entries",
		"hello":       fmt.Sprintf("HELLO, %d bytes", len(hello{}.append(nil))),
		"welcome":     fmt.Sprintf("WELCOME, %d bytes and a text", len(welcome{}.append(nil))-2),
		"window":      fmt.Sprintf("| window | %d KiB |", defaultWindow>>10),
		"max window":  fmt.Sprintf("| max_window | %d MiB |", defaultMaxWindow>>20),
		"memory":      fmt.Sprintf("| memory | %d MiB |", defaultMemory>>20),
		"streams":     "| streams | " + thousands(defaultMaxStreams) + " |",
		"delay":       fmt.Sprintf("%d ms after the first byte", ackDelay.Milliseconds()),
		"growth":      fmt.Sprintf("within %d round trips (or %d ms", growFactor, growFloor.Milliseconds()),
		"heartbeat":   fmt.Sprintf("`heartbeat` old (%d s)", int(defaultHeartbeat.Seconds())),
		"idle":        fmt.Sprintf("half a heartbeat (%d s)", int((defaultHeartbeat / 2).Seconds())),
		"busy":        fmt.Sprintf("dead after %d s", int(pulseDead.Seconds())),
		"farewell":    fmt.Sprintf("at most %d s", int(farewellTime.Seconds())),
		"frame time":  fmt.Sprintf("takes in %d ms, down\nto %d KiB", frameTime.Milliseconds(), minFrame>>10),
		"share":       fmt.Sprintf("high has %d times the share", 1<<classShift),
	} {
		require.Contains(t, spec, text, what)
	}
}

// Every vector that the specification refers to is there, and every file is one.
func TestGoldenVectorsAreComplete(t *testing.T) {
	want := map[string]bool{}
	for _, g := range goldenFrames() {
		want[g.name+".hex"] = true
	}
	entries, err := os.ReadDir("testdata")
	require.NoError(t, err)
	for _, e := range entries {
		if !e.IsDir() {
			require.True(t, want[e.Name()], e.Name())
			delete(want, e.Name())
		}
	}
	require.Empty(t, want)
}

// Connecting, opening, resuming, also through another replica, and draining have their diagrams.
//
// Verifies: R12.5
func TestSpecificationHasItsDiagrams(t *testing.T) {
	spec := specification(t)
	diagrams := regexp.MustCompile("(?s)```mermaid\nsequenceDiagram\n(.*?)```").FindAllStringSubmatch(spec, -1)
	require.Len(t, diagrams, 5)
	for i, words := range [][]string{{"CHALLENGE", "HELLO", "WELCOME"}, {"OPEN 1", "OPENED", "DATA", "CREDIT", "FIN"}, {"epoch 2", "SYNC", "4008"}, {"Fairlead-Replica", "nonce", "WELCOME"}, {"GOAWAY", "RESET 0"}} {
		for _, w := range words {
			require.Contains(t, diagrams[i][1], w)
		}
	}
}
