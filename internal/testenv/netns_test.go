package testenv

import (
	"os"
	"strings"
	"testing"
)

// An `ip netns add` beside a lab must find a shared mount point, or it would
// make one on top of the lab's namespaces.
func TestNamespaceDirectoryIsShared(t *testing.T) {
	New(t, Default(1))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		// proc(5): the fifth field is the mount point, optional fields follow the sixth.
		fields := strings.Fields(line)
		if len(fields) > 6 && fields[4] == netnsDir && strings.HasPrefix(fields[6], "shared:") {
			return
		}
	}
	t.Errorf("%s is no shared mount point", netnsDir)
}
