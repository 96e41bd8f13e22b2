package link

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

var update = flag.Bool("update", false, "write the golden frames")

// golden is one frame of each kind and shape.
type golden struct {
	name    string
	head    header
	payload []byte
}

func sequence(from byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func goldenFrames() []golden {
	var id ID
	var key [keySize]byte
	var proven [proofSize]byte
	copy(id[:], sequence(0x10, idSize))
	copy(key[:], sequence(0x40, keySize))
	nonce := sequence(0x80, nonceSize)
	proven = proof(key, id, 2, nonce)
	failure := errs.New(errs.OpenRate, "too fast").After(1500 * time.Millisecond)
	entries := syncEntry{stream: 1, flags: syncOpened | syncFinReceived, received: 300, consumed: 200, limit: 262344}.append(nil)
	entries = syncEntry{stream: 7, flags: syncReset, code: errs.RouteForbidden}.append(entries)
	return []golden{
		{"challenge", header{kind: typeChallenge}, nonce},
		{"hello-new", header{kind: typeHello}, hello{version: 1, limits: limits{1 << 20, 256 << 10}}.append(nil)},
		{"hello-resume", header{kind: typeHello}, hello{version: 1, limits: limits{1 << 20, 256 << 10}, tunnel: id, epoch: 2, proof: proven}.append(nil)},
		{"welcome-new", header{kind: typeWelcome}, welcome{version: 1, limits: limits{1 << 20, 256 << 10}, tunnel: id, key: key, heartbeat: 30 * time.Second, resumeTTL: time.Minute, idle: 5 * time.Minute, replica: "gw-0"}.append(nil)},
		{"welcome-resume", header{kind: typeWelcome}, welcome{version: 1, limits: limits{1 << 20, 256 << 10}, tunnel: id, heartbeat: 30 * time.Second, resumeTTL: time.Minute, idle: 5 * time.Minute, replica: "gw-0"}.append(nil)},
		{"hello-capable", header{kind: typeHello}, hello{version: 1, limits: limits{1 << 20, 256 << 10}, caps: canCompress}.append(nil)},
		{"welcome-capable", header{kind: typeWelcome}, welcome{version: 1, limits: limits{1 << 20, 256 << 10}, tunnel: id, key: key, heartbeat: 30 * time.Second, resumeTTL: time.Minute, idle: 5 * time.Minute, replica: "gw-0", caps: canCompress}.append(nil)},
		{"sync", header{kind: typeSync, offset: 9}, entries},
		{"sync-more", header{kind: typeSync, flags: flagMore, offset: 9}, entries[:syncEntrySize]},
		{"sync-empty", header{kind: typeSync}, nil},
		{"open", header{kind: typeOpen, stream: 3}, OpenRequest{Route: "git", Priority: High, Peer: "127.0.0.1:50000", Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}.append(nil)},
		{"open-plain", header{kind: typeOpen, stream: 4}, OpenRequest{Route: "logs", Priority: Low}.append(nil)},
		{"open-compressed", header{kind: typeOpen, stream: 4}, OpenRequest{Route: "logs", Priority: Low, Compression: CompressAuto}.append(nil)},
		{"opened-compressed", header{kind: typeOpened, flags: flagCompress, stream: 4}, nil},
		{"opened", header{kind: typeOpened, stream: 3}, nil},
		{"data", header{kind: typeData, stream: 3, offset: 0x0102030405}, []byte("SSH-2.0-x\r\n")},
		{"data-fin", header{kind: typeData, flags: flagFin, stream: 3, offset: 16}, []byte("bye")},
		{"data-compressed", header{kind: typeData, flags: flagCompressed, stream: 4, offset: 4096}, packedGolden()},
		{"credit", header{kind: typeCredit, stream: 3, offset: 262155}, []byte{0, 0, 0, 0, 0, 0, 0, 11}},
		{"credit-fin", header{kind: typeCredit, flags: flagFin, stream: 3, offset: 262155}, []byte{0, 0, 0, 0, 0, 0, 0, 11}},
		{"fin", header{kind: typeFin, stream: 3, offset: 11}, nil},
		{"reset", header{kind: typeReset, stream: 3}, appendFailure(nil, failure)},
		{"reset-ack", header{kind: typeReset, flags: flagAck, stream: 3}, nil},
		{"reset-quota", header{kind: typeReset, stream: 3}, appendQuota(appendFailure(nil, failure), &errs.Quota{Limit: 100, Remaining: 1, ResetMS: 60_000})},
		{"reset-tunnel", header{kind: typeReset}, appendFailure(nil, errs.New(errs.Draining, "the gateway is going away"))},
		{"ping", header{kind: typePing, offset: 5}, nil},
		{"pong", header{kind: typePong, offset: 5}, nil},
		{"auth", header{kind: typeAuth}, []byte("eyJhbGciOiJIUzI1NiJ9.e30.sig")},
		{"auth-taken", header{kind: typeAuth, flags: flagAnswer, offset: 1800000000}, appendFailure(nil, &errs.Error{})},
		{"auth-refused", header{kind: typeAuth, flags: flagAnswer}, appendFailure(nil, errs.New(errs.TokenExpired, "expired"))},
		{"goaway", header{kind: typeGoAway}, GoAway{Reason: errs.New(errs.Draining, "the gateway is going away"), Deadline: 30 * time.Second, Delay: 1234 * time.Millisecond, Where: "wss://b.example/"}.append(nil)},
	}
}

func (g golden) message() []byte {
	var head [headerSize]byte
	g.head.put(&head)
	return append(head[:], g.payload...)
}

// Every frame is on the wire exactly as it was when its vector was written.
func TestFramesMatchTheGoldenVectors(t *testing.T) {
	for _, g := range goldenFrames() {
		t.Run(g.name, func(t *testing.T) {
			file := filepath.Join("testdata", g.name+".hex")
			got := dump(g.message())
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got)

			raw, err := hex.DecodeString(strings.Join(strings.Fields(string(want)), ""))
			require.NoError(t, err)
			buf := make([]byte, MaxPayload)
			h, n, err := readMessage(bytes.NewReader(raw), buf)
			require.NoError(t, err)
			require.Equal(t, g.head, h)
			require.Equal(t, string(g.payload), string(again(t, h, buf[:n])), "decoding and encoding changes the payload")
		})
	}
}

// dump is the header on the first line, and 32 bytes of payload on each that follows.
func dump(message []byte) string {
	var out strings.Builder
	out.WriteString(hex.EncodeToString(message[:headerSize]) + "\n")
	for p := message[headerSize:]; len(p) > 0; {
		n := min(32, len(p))
		out.WriteString(hex.EncodeToString(p[:n]) + "\n")
		p = p[n:]
	}
	return out.String()
}

// again decodes a payload and encodes what was understood.
func again(t testing.TB, h header, p []byte) []byte {
	b, err := recode(h, p)
	require.NoError(t, err)
	return b
}

func recode(h header, p []byte) ([]byte, error) {
	switch h.kind {
	case typeHello:
		v, err := parseHello(p)
		return v.append(nil), err
	case typeWelcome:
		v, err := parseWelcome(p)
		return v.append(nil), err
	case typeSync:
		entries, err := parseSync(p)
		var b []byte
		for _, e := range entries {
			b = e.append(b)
		}
		return b, err
	case typeOpen:
		v, err := parseOpen(p)
		return v.append(nil), err
	case typeGoAway:
		v, err := parseGoAway(p)
		return v.append(nil), err
	case typeReset:
		if h.flags&flagAck != 0 {
			return nil, nil
		}
		f := fields{b: p}
		e := f.failure()
		return appendQuota(appendFailure(nil, e), f.quota()), f.err
	case typeAuth:
		if h.flags&flagAnswer != 0 {
			return recodeFailure(p)
		}
	}
	return p, nil
}

func recodeFailure(p []byte) ([]byte, error) {
	f := fields{b: p}
	e := f.failure()
	return appendFailure(nil, e), f.err
}

// The proof depends on the key, the tunnel, the epoch and the nonce, and is the one that PROTOCOL.md describes.
func TestProofBindsKeyTunnelEpochAndNonce(t *testing.T) {
	base := proof([keySize]byte{1}, ID{2}, 3, []byte{4})
	require.NotEqual(t, base, proof([keySize]byte{9}, ID{2}, 3, []byte{4}))
	require.NotEqual(t, base, proof([keySize]byte{1}, ID{9}, 3, []byte{4}))
	require.NotEqual(t, base, proof([keySize]byte{1}, ID{2}, 9, []byte{4}))
	require.NotEqual(t, base, proof([keySize]byte{1}, ID{2}, 3, []byte{9}))
}

// What is too long for its field is cut or left out, never sent over the limit of the other side.
func TestLongTextsStayWithinTheirLimits(t *testing.T) {
	long := strings.Repeat("ä", 2000)
	e := (&fields{b: appendFailure(nil, errs.New(errs.Internal, "%s", long))}).failure()
	require.Equal(t, strings.Repeat("ä", maxMessage/2), e.Message, "cut between runes")
	e = (&fields{b: appendText([]byte{0, 1, 0, 0, 0, 0}, "x"+long)}).failure()
	require.Equal(t, "x"+strings.Repeat("ä", maxMessage/2-1), e.Message, "a peer's text is cut too")
	g, err := parseGoAway(GoAway{Reason: errs.New(errs.Draining, "x"), Where: long}.append(nil))
	require.NoError(t, err)
	require.Empty(t, g.Where)
	w, err := parseWelcome(welcome{replica: strings.Repeat("r", 5000)}.append(nil))
	require.NoError(t, err)
	require.Len(t, w.replica, maxReplica)
	require.Len(t, appendText(nil, strings.Repeat("x", 1<<17)), 2+0xFFFF)
}

func TestFrameTypesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, g := range goldenFrames() {
		name := g.head.kind.String()
		require.Equal(t, strings.ToUpper(name), name)
		seen[name] = true
	}
	require.Len(t, seen, 14)
	require.Equal(t, "type 0x99", frameType(0x99).String())
}
