package config

import (
	"path/filepath"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
)

// DefaultSyncPort is where the nodes of a cluster talk to each other.
const DefaultSyncPort = 3780

// maxKeys is how many keys may count at a time: a new one, and the one before.
const maxKeys = 2

// Sync is how the nodes of a cluster talk to each other.
type Sync struct {
	Port uint16 // of UDP and TCP, on every node
	// Keys authenticate it. The first is this node's own; another one is accepted
	// as well, while keys change. Empty: nothing needs them.
	Keys []key.Key
}

// defaultSyncWait is how long an instance waits for the state of the Active node before
// it preempts it, where the nodes have any in common.
const defaultSyncWait = 30 * time.Second

var syncSchema = schema{
	what:  "sync",
	keys:  []string{"port", "key_file", "key_files"},
	later: []string{"listen", "peers"},
	hints: map[string]string{
		"key": "a key stands in a file of its own: write key_file: FILE",
	},
}

// sync decodes the section.
func (d *decoder) sync(n *node, files fileSystem) Sync {
	s := Sync{Port: DefaultSyncPort}
	if n == nil {
		return s
	}
	f, ok := d.fields(n, &syncSchema)
	if !ok {
		return s
	}
	if p := f.own["port"]; p != nil {
		if i, ok := d.integer(p, "port", 1, 65535); ok {
			s.Port = uint16(i)
		}
	}
	one, several := f.own["key_file"], f.own["key_files"]
	switch {
	case one != nil && several != nil:
		d.errorf(f.keys["key_files"], "key_file and key_files are both set: take one of them")
	case several != nil:
		s.Keys = d.keyFiles(several, files)
	case one != nil:
		if k, ok := d.keyFile(one, "key_file", files); ok {
			s.Keys = []key.Key{k}
		}
	default:
		d.errorf(n, "missing key \"key_file\": sync needs it, or \"key_files\"")
	}
	return s
}

// keyFiles decodes a list of key files: what is in force, first the node's own.
func (d *decoder) keyFiles(n *node, files fileSystem) (keys []key.Key) {
	items, ok := d.list(n, "key_files")
	switch {
	case !ok:
		return nil
	case len(items) == 0 || len(items) > maxKeys:
		d.errorf(n, "key_files has %d entries: it takes one or %d, the new one and the one before", len(items), maxKeys)
		return nil
	}
	for _, item := range items {
		k, ok := d.keyFile(item, "key_files", files)
		if ok && len(keys) == 1 && k == keys[0] {
			d.errorf(item, "key_files: both files hold the same key")
			continue
		}
		if ok {
			keys = append(keys, k)
		}
	}
	return keys
}

// keyFile reads a key. The name is relative to the folder of the file that names
// it.
func (d *decoder) keyFile(n *node, what string, files fileSystem) (k key.Key, ok bool) {
	path, ok := d.text(n, what)
	if !ok {
		return k, false
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(n.src.name), path)
	}
	mode, err := files.Mode(path)
	if err == nil {
		if err := key.CheckMode(mode); err != nil {
			d.errorf(n, "%s: %s: %v", what, path, err)
			return k, false
		}
		var text []byte
		if text, err = files.ReadFile(path); err == nil {
			if k, err = key.Parse(text); err == nil {
				return k, true
			}
			d.errorf(n, "%s: %s: %v", what, path, err)
			return k, false
		}
	}
	d.errorf(n, "%s: cannot read %s: %s; make a key with `sluice keygen FILE`, and give every node the same", what, path, reason(err))
	d.errs[len(d.errs)-1].cause = err
	return k, false
}

// syncWaits fills in how long instances wait where the nodes have state in common, and
// finds what cannot be with that, and without it.
func (d *decoder) syncWaits(sync *node, instances []*instanceDef) {
	for _, i := range instances {
		switch {
		case sync == nil && i.syncWaitAt != nil:
			d.errorf(i.syncWaitAt, "sync_wait needs state that the nodes have in common: write sync: {key_file: FILE} at the top")
		case sync == nil:
		case i.Priority == owner:
			at := i.priorityAt
			if at == nil { // it is the node's
				at = sync
			}
			d.errorf(at, "instance %q has priority 255, which takes over at once, and sync is to have it wait for the other node's state: give it a lower priority, or remove sync", i.Name)
		case i.syncWaitAt == nil:
			i.SyncWait = defaultSyncWait
		}
	}
}
