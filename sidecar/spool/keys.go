package spool

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"os"

	"fairlead/shared/errs"
)

const (
	keySize  = 32
	saltSize = 32
)

// keyring holds the key for what is written, if any, and all keys for what is read.
type keyring struct {
	current string // id of the key for new segments; empty: they are not encrypted
	keys    map[string][]byte
}

// loadKeys reads key files. file may be empty: what is written is then not encrypted.
func loadKeys(file string, old []string) (*keyring, error) {
	k := &keyring{keys: map[string][]byte{}}
	for _, f := range old {
		if _, err := k.load(f); err != nil {
			return nil, err
		}
	}
	if file == "" {
		return k, nil
	}
	id, err := k.load(file)
	k.current = id
	return k, err
}

func (k *keyring) load(file string) (id string, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", errs.Wrap(errs.KeyUnreadable, err, "a key file of the spool")
	}
	key := raw
	if len(raw) != keySize {
		if key, err = base64.StdEncoding.DecodeString(string(bytes.TrimSpace(raw))); err != nil || len(key) != keySize {
			return "", errs.New(errs.KeyUnreadable, "%s holds no key of the spool: allowed are %d bytes, or those in base64", file, keySize)
		}
	}
	sum := sha256.Sum256(append([]byte("fairlead spool key id v1\x00"), key...))
	id = hex.EncodeToString(sum[:8])
	k.keys[id] = key
	return id, nil
}

// seal makes the cipher of a new segment; nil when segments are not encrypted.
func (k *keyring) seal() (box cipher.AEAD, id string, salt []byte, err error) {
	if k.current == "" {
		return nil, "", nil, nil
	}
	salt = make([]byte, saltSize)
	rand.Read(salt) // never fails (crypto/rand)
	box, err = k.open(k.current, salt)
	return box, k.current, salt, err
}

// open makes the cipher of a segment. Its key is its own: the configured one is used to derive others, and nothing else,
// so that nonces need to be unique within one segment only.
func (k *keyring) open(id string, salt []byte) (cipher.AEAD, error) {
	key, ok := k.keys[id]
	if !ok {
		return nil, errs.New(errs.SpoolKey, "encrypted with key %.32q, which is not configured", id)
	}
	own, err := hkdf.Key(sha256.New, key, salt, "fairlead spool segment v1", keySize)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "deriving a key")
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "making a cipher")
	}
	return cipher.NewGCM(block)
}

func nonce(seq uint32) []byte {
	var n [12]byte
	binary.BigEndian.PutUint32(n[8:], seq)
	return n[:]
}
