package testbed

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// ports are the arguments that make Redis listen.
func (cfg RedisConfig) ports(host, port string) []string {
	if cfg.TLS == nil {
		return []string{"--bind", host, "--port", port}
	}
	auth := "no"
	if cfg.TLS.Clients {
		auth = "yes"
	}
	return []string{"--bind", host, "--port", "0", "--tls-port", port, "--tls-cert-file", cfg.TLS.Cert.CertFile, "--tls-key-file", cfg.TLS.Cert.KeyFile,
		"--tls-ca-cert-file", cfg.TLS.CA.CertFile(), "--tls-auth-clients", auth}
}

// Do sends a command, as the default user, on a connection of its own. Lists are answered as lines.
func (r *Redis) Do(words ...string) (string, error) {
	conn, err := r.connect()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return "", err
	}
	answers := bufio.NewReader(conn)
	if r.cfg.Password != "" {
		if _, err := command(conn, answers, "AUTH", r.cfg.Password); err != nil {
			return "", err
		}
	}
	return command(conn, answers, words...)
}

func (r *Redis) connect() (net.Conn, error) {
	if r.cfg.TLS == nil {
		return net.DialTimeout(r.Network(), r.addr, probeTimeout)
	}
	pair, err := tls.LoadX509KeyPair(r.cfg.TLS.Cert.CertFile, r.cfg.TLS.Cert.KeyFile)
	if err != nil {
		return nil, err
	}
	cfg := r.cfg.TLS.CA.ClientTLS()
	cfg.Certificates = []tls.Certificate{pair}
	return tls.DialWithDialer(&net.Dialer{Timeout: probeTimeout}, "tcp", r.addr, cfg)
}

// command sends one command of the Redis protocol and reads its answer.
func command(conn io.Writer, answers *bufio.Reader, words ...string) (string, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&out, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(conn, out.String()); err != nil {
		return "", err
	}
	answer, err := readAnswer(answers)
	if err != nil {
		return "", fmt.Errorf("redis, asked to %s: %w", words[0], err)
	}
	return answer, nil
}

func readAnswer(answers *bufio.Reader) (string, error) {
	line, err := answers.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", errors.New("it answers with an empty line")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New(rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err
	}
	if kind == '$' {
		text := make([]byte, n+len("\r\n"))
		_, err := io.ReadFull(answers, text)
		return string(text[:n]), err
	}
	lines := make([]string, n)
	for i := range lines {
		if lines[i], err = readAnswer(answers); err != nil {
			return "", err
		}
	}
	return strings.Join(lines, "\n"), nil
}

// ConfigSet changes a setting of a running Redis, until it ends.
func (r *Redis) ConfigSet(name, value string) error {
	_, err := r.Do("CONFIG", "SET", name, value)
	return err
}

// ReplicaOf makes Redis a read-only replica of another one, and returns when it has the same data; of nil: a master again.
func (r *Redis) ReplicaOf(ctx context.Context, master *Redis) error {
	if master == nil {
		_, err := r.Do("REPLICAOF", "NO", "ONE")
		return err
	}
	host, port, err := net.SplitHostPort(master.addr)
	if err != nil {
		return err
	}
	if err := master.ConfigSet("repl-diskless-sync-delay", "0"); err != nil {
		return err
	}
	if _, err := r.Do("REPLICAOF", host, port); err != nil {
		return err
	}
	return r.waitUntil(ctx, func() error { return r.says("master_link_status:up", "INFO", "replication") })
}

// says returns nil when the answer to a command holds want.
func (r *Redis) says(want string, words ...string) error {
	answer, err := r.Do(words...)
	if err == nil && !strings.Contains(answer, want) {
		err = fmt.Errorf("redis at %s does not say %q", r.addr, want)
	}
	return err
}

func (r *Redis) waitUntil(ctx context.Context, ready func() error) error {
	r.mu.Lock()
	proc := r.proc
	r.mu.Unlock()
	if proc == nil {
		return errExited
	}
	return proc.waitUntil(ctx, ready)
}
