// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"maps"
	"slices"
)

// services are those of this node and of a peer, as far as a connection has told
// them.
type services struct {
	list   []ServiceDigest // this node's
	mine   map[string]uint64
	theirs map[string]uint64 // nil: not told yet
	tell   bool              // this node's are to be told
}

func byName(list []ServiceDigest) map[string]uint64 {
	m := make(map[string]uint64, len(list))
	for _, s := range list {
		m[s.Name] = s.Digest
	}
	return m
}

// have says what this node's are now.
func (s *services) have(list []ServiceDigest) {
	s.list, s.mine, s.tell = list, byName(list), true
}

// same reports whether both nodes have a service, and the same one.
func (s *services) same(name string) bool {
	mine, here := s.mine[name]
	theirs, there := s.theirs[name]
	return here && there && mine == theirs
}

// differ are the names of those that are not the same, in order.
func (s *services) differ() []string {
	if s.theirs == nil {
		return nil
	}
	all := maps.Clone(s.mine)
	maps.Copy(all, s.theirs)
	return slices.DeleteFunc(slices.Sorted(maps.Keys(all)), s.same)
}
