package backend

import "golang.org/x/crypto/ssh"

// What the gateway offers to backends, best first. The library's own defaults still hold SHA-1 and plain ssh-rsa, so each
// list is spelled out. The lists are functions because slices at package level could be changed.

func keyExchanges() []string {
	return []string{
		ssh.KeyExchangeMLKEM768X25519,
		ssh.KeyExchangeCurve25519, // the library adds its older name, curve25519-sha256@libssh.org
		ssh.KeyExchangeECDHP256,
		ssh.KeyExchangeECDHP384,
	}
}

func ciphers() []string {
	return []string{
		ssh.CipherAES256GCM,
		ssh.CipherAES128GCM,
		ssh.CipherChaCha20Poly1305,
		ssh.CipherAES256CTR, // the CTR modes are for servers without the above, and only with the MACs below
		ssh.CipherAES128CTR,
	}
}

// macs matter to the CTR modes only; all are encrypt-then-MAC.
func macs() []string {
	return []string{ssh.HMACSHA512ETM, ssh.HMACSHA256ETM}
}

func plainHostKeys() []string {
	return []string{
		ssh.KeyAlgoED25519,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
}

func certifiedHostKeys() []string {
	return []string{
		ssh.CertAlgoED25519v01,
		ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
		ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
	}
}

// keyAlgoDSA is DSA's name in SSH (RFC 4253 section 6.6), which the library deprecates even to refuse.
const keyAlgoDSA = "ssh-dss"

// insecureSignature reports signature algorithms over SHA-1, with which a certificate may have been signed.
func insecureSignature(format string) bool {
	return format == ssh.KeyAlgoRSA || format == keyAlgoDSA
}
