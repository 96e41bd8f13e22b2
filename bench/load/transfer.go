package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

// transfer moves job.Bytes in all, up or down, over job.Streams connections at once.
func transfer(ctx context.Context, job Job) (Outcome, error) {
	if job.Streams < 1 || job.Bytes < int64(job.Streams) {
		return Outcome{}, fmt.Errorf("cannot spread %d bytes over %d streams", job.Bytes, job.Streams)
	}
	each := uint64(job.Bytes / int64(job.Streams))
	move := download
	if job.Up {
		move = upload
	}
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i := range job.Streams {
		group.Go(func() error { return move(ctx, job.Addr, uint64(i)+1, each) })
	}
	err := group.Wait()
	return Outcome{Bytes: int64(each) * int64(job.Streams), Count: job.Streams, Seconds: time.Since(start).Seconds()}, err
}

// upload sends length bytes and waits for the target's receipt.
func upload(ctx context.Context, addr string, seed, length uint64) error {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	defer release()
	h := header{opUpload, seed, length}
	if _, err := conn.Write(h.encode()); err != nil {
		return err
	}
	if err := send(ctx, conn, h); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	got, err := readCount(conn)
	if err != nil {
		return fmt.Errorf("upload of %d bytes got no receipt: %w", length, err)
	}
	if got != length {
		return fmt.Errorf("%w: uploaded %d bytes, %d arrived", errContent, length, got)
	}
	return atEnd(conn)
}

// download receives and verifies length bytes and the end after them.
func download(ctx context.Context, addr string, seed, length uint64) error {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	defer release()
	if _, err := conn.Write(header{opDownload, seed, length}.encode()); err != nil {
		return err
	}
	v := newVerifier(seed)
	if err := receive(conn, v, nil); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	if v.offset != length {
		return fmt.Errorf("%w: %d bytes were to come, %d did", errContent, length, v.offset)
	}
	return nil
}

// receive reads and verifies until the end; seen, when given, is told of every read.
func receive(conn *net.TCPConn, v *verifier, seen func(n int)) error {
	buf := make([]byte, blockSize)
	for {
		n, err := conn.Read(buf)
		if err := v.check(buf[:n]); err != nil {
			return err
		}
		if seen != nil {
			seen(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", v.offset, err)
		}
	}
}

// readCount reads a receipt or a progress record.
func readCount(conn *net.TCPConn) (uint64, error) {
	var record [receiptSize]byte
	if _, err := io.ReadFull(conn, record[:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(record[:]), nil
}

// atEnd checks that nothing comes any more.
func atEnd(conn *net.TCPConn) error {
	var one [1]byte
	n, err := conn.Read(one[:])
	if n > 0 {
		return errors.New("more came after the last byte")
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("the connection did not end after its last byte: %w", err)
	}
	return nil
}
