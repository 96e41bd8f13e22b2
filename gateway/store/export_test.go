package store

// Size counts what m holds, expired or not.
func (m *Memory) Size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.replicas) + len(m.tunnels) + len(m.circuits) + len(m.probes) + len(m.keys) + len(m.revoked) + len(m.tenants)
}

// SlotTags is slotTags.
func SlotTags() []string { return slotTags() }

// Classify is the kind, text and weight (2: it is down) of an error.
func Classify(err error) (kind, text string, weight int) {
	f := classify(err)
	return f.kind, f.text, int(f.weight)
}

// ParseTunnel is parseTunnel.
func ParseTunnel(raw string) (Tunnel, error) { return parseTunnel(raw) }
