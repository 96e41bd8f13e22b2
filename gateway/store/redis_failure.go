package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// Kinds of failures, in metrics.
const (
	kindTimeout     = "timeout"
	kindUnreachable = "unreachable"
	kindFull        = "full"
	kindReadOnly    = "readonly"
	kindRefused     = "refused"
	kindOther       = "other"
)

// weight is what a failure says about whether Redis can be used.
type weight int

const (
	nothing weight = iota
	doubt          // another one, and it is down
	down
)

// failure is what is told of an error of Redis. What Redis says is not passed on: some of its errors repeat the command, with
// the password in it.
type failure struct {
	kind   string
	text   string
	weight weight
}

// answers are what Redis's errors begin with.
func answers() map[string]failure {
	return map[string]failure{
		"OOM":         {kindFull, "it has no memory left (OOM)", down},
		"MISCONF":     {kindFull, "it refuses writes since it cannot save them (MISCONF)", down},
		"READONLY":    {kindReadOnly, "it is a read-only replica (READONLY)", down},
		"NOREPLICAS":  {kindReadOnly, "it refuses writes since it has too few replicas (NOREPLICAS)", down},
		"LOADING":     {kindUnreachable, "it is loading its data (LOADING)", down},
		"MASTERDOWN":  {kindUnreachable, "it is a replica without its master (MASTERDOWN)", down},
		"CLUSTERDOWN": {kindUnreachable, "the cluster is down (CLUSTERDOWN)", down},
		"NOAUTH":      {kindRefused, "it asks for a password (NOAUTH)", down},
		"WRONGPASS":   {kindRefused, "it does not accept user and password (WRONGPASS)", down},
		"NOPERM":      {kindRefused, "its ACL does not allow what the store needs (NOPERM)", down},
		"BUSY":        {kindTimeout, "it is busy with a script (BUSY)", down},
		"TRYAGAIN":    {kindOther, "the cluster is moving slots (TRYAGAIN)", doubt},
	}
}

// classify says what an error means.
func classify(err error) failure {
	if f, ok := answered(err); ok {
		return f
	}
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var alert tls.AlertError
	var local *localError
	var dial *dialError
	var timeout net.Error
	switch {
	case errors.As(err, &local):
		return failure{kindRefused, clip(local.Error()), down}
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &alert):
		return failure{kindRefused, clip(err.Error()), down}
	case errors.As(err, &dial):
		return failure{kindUnreachable, clip(dial.Error()), down}
	case errors.Is(err, redis.ErrClosed):
		return failure{kindOther, "the connection was given up", nothing}
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return failure{kindTimeout, "all connections are in use", doubt}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return failure{kindTimeout, "it does not answer in time", doubt}
	case broken(err):
		return failure{kindUnreachable, "the connection broke", doubt}
	}
	return failure{kindOther, clip(err.Error()), doubt}
}

// answered is classify of what Redis has answered.
func answered(err error) (failure, bool) {
	var said redis.Error
	if !errors.As(err, &said) {
		return failure{}, false
	}
	text := said.Error()
	word, _, _ := strings.Cut(text, " ")
	if f, ok := answers()[word]; ok {
		return f, true
	}
	switch {
	case strings.Contains(text, "max number of clients"):
		return failure{kindFull, "it takes no more connections", down}, true
	case strings.Contains(text, "ACL failure"), strings.Contains(text, "can't run this command"), strings.Contains(text, "can't access"):
		return answers()["NOPERM"], true
	case strings.Contains(text, "WRONGPASS"), strings.Contains(text, "invalid password"), strings.Contains(text, "without any password"):
		return answers()["WRONGPASS"], true
	}
	return failure{kindOther, "it answers with an error", nothing}, true
}

// broken says whether a connection broke that may have been dead for a while.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// clip bounds what is told of an error of this machine, to one line.
func clip(s string) string {
	const most = 200
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?")
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
