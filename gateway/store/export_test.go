package store

// Size counts what m holds, expired or not.
func (m *Memory) Size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.replicas) + len(m.tunnels) + len(m.circuits) + len(m.probes) + len(m.keys) + len(m.revoked) + len(m.tenants)
}
