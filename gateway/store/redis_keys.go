package store

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"path"
	"strings"

	"github.com/redis/go-redis/v9"
)

// keys names keys after their prefix. What is in braces (the hash tag) decides the slot of a cluster: all keys of one script
// have the same.
//
//	P:{=gw}:streams     what tenant gw holds and has used; also :tunnels, :opens
//	P:{t=00ff}          the record of tunnel 00ff
//	P:{replicas}:z, :h  a list that expires entry by entry; also circuits, revocations (and its :v)
//	P:{p=git}           who probes backend git
//	P:{k=10.0.0.1:22}   the host key of first use
//	P:{…}:i, :w         the incarnation, and what is written to prove that one can, once for each of slotTags
type keys string

func (k keys) in(tag, rest string) string { return string(k) + ":{" + tag + "}" + rest }

func (k keys) slots(tenant, kind string) string { return k.in(encode(tenant), ":"+encode(kind)) }
func (k keys) opens(tenant string) string       { return k.in(encode(tenant), ":opens") }
func (k keys) tunnel(id string) string          { return k.in("t"+encode(id), "") }
func (k keys) probe(backend string) string      { return k.in("p"+encode(backend), "") }
func (k keys) hostKey(address string) string    { return k.in("k"+encode(address), "") }
func (k keys) list(name string) []string        { return []string{k.in(name, ":z"), k.in(name, ":h")} }
func (k keys) revocations() []string            { return append(k.list("revocations"), k.in("revocations", ":v")) }
func (k keys) channel() string                  { return string(k) + ":events" }

// slotTags are hash tags that are spread evenly over the 16,384 slots of a cluster, one for each 1,024: whatever masters it
// has, each with a part of that size has one of them.
func slotTags() []string {
	return []string{"s10", "s29", "s69", "s43", "s11", "s28", "s68", "s42", "s12", "s38", "s8", "s41", "s13", "s39", "s9", "s40"}
}

// tags are those that stand for all that there is: of a cluster slotTags, else one.
func (r *Redis) tags() []string {
	if r.cfg.Mode == Cluster {
		return slotTags()
	}
	return slotTags()[:1]
}

// maxPlain is how long a name may be that is part of a key as it is.
const maxPlain = 64

// encode makes any name a part of a key: short names of harmless characters as they are, others as their SHA-256, so that
// no name is mistaken for another, none has a brace or a line's end, and none is long.
func encode(name string) string {
	if len(name) <= maxPlain && !strings.ContainsFunc(name, func(r rune) bool { return !plain(r) && !strings.ContainsRune(":/@+", r) }) {
		return "=" + name
	}
	sum := sha256.Sum256([]byte(name))
	return "~" + base64.RawURLEncoding.EncodeToString(sum[:])
}

func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)
}

//go:embed lua/*.lua
var lua embed.FS

// scripts by name. They are run by their hash, and sent when Redis does not have them.
type scripts map[string]*redis.Script

func newScripts() scripts {
	read := func(name string) string {
		raw, err := lua.ReadFile("lua/" + name)
		if err != nil {
			panic(fmt.Sprintf("store: %v", err)) // it is in the binary, or the binary was not built
		}
		return string(raw)
	}
	files, err := lua.ReadDir("lua")
	if err != nil {
		panic(fmt.Sprintf("store: %v", err))
	}
	all, prelude := scripts{}, read("prelude.lua")
	for _, file := range files {
		if name := file.Name(); name != "prelude.lua" {
			// What a script is declared to do is looked at before it runs: in a Redis that is full or read-only it fails with nothing
			// done, while one that only reads goes on.
			body, first := read(name), "#!lua\n"
			if strings.Contains(body, "Writes nothing") {
				first = "#!lua flags=no-writes\n"
			}
			all[strings.TrimSuffix(name, path.Ext(name))] = redis.NewScript(first + prelude + body)
		}
	}
	return all
}
