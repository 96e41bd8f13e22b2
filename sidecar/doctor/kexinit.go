package doctor

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// offer is what an SSH server offers (RFC 4253 section 7.1), by what the lists are for.
type offer struct {
	KeyExchange, HostKey, Cipher, MAC []string
}

const (
	msgKexInit    = 20
	cookieSize    = 16
	mostNames     = 100 // of a list that are kept
	packetHeader  = 5   // length and length of the padding
	mostKexPacket = 35000
)

// parseOffer finds SSH_MSG_KEXINIT in what a server sent first; false: it is not there, or not whole.
func parseOffer(b []byte) (o offer, ok bool) {
	for { // the version, and what may come before it
		line, rest, more := bytes.Cut(b, []byte("\n"))
		if !more {
			return o, false
		}
		if b = rest; bytes.HasPrefix(line, []byte("SSH-")) {
			break
		}
	}
	if len(b) < packetHeader {
		return o, false
	}
	length, padding := binary.BigEndian.Uint32(b), uint32(b[4])
	if length > mostKexPacket || uint64(len(b)) < 4+uint64(length) || length < 1+padding+1+cookieSize {
		return o, false
	}
	p := b[packetHeader : 4+length-padding]
	if p[0] != msgKexInit {
		return o, false
	}
	p = p[1+cookieSize:]
	var lists [10][]string
	for i := range lists {
		if len(p) < 4 || uint64(len(p)) < 4+uint64(binary.BigEndian.Uint32(p)) {
			return o, false
		}
		n := binary.BigEndian.Uint32(p)
		lists[i] = names(string(p[4 : 4+n]))
		p = p[4+n:]
	}
	// Of the pairs, what goes to the client comes second; servers offer the same both ways.
	return offer{KeyExchange: lists[0], HostKey: lists[1], Cipher: lists[3], MAC: lists[5]}, true
}

func names(list string) []string {
	if list == "" {
		return nil
	}
	all := strings.SplitN(list, ",", mostNames+1)
	all = all[:min(len(all), mostNames)]
	for i := range all {
		all[i] = clip(all[i], 80)
	}
	return all
}

// chosen is what client and server agree on: the client's first that the server has too; empty: nothing.
func chosen(client, server []string) string {
	for _, c := range client {
		for _, s := range server {
			if c == s {
				return c
			}
		}
	}
	return ""
}
