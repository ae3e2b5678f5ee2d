package health

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// checkProcess passes if the process runs that a file names, or one of a name.
// One that has ended, and that its parent has not waited for, does not run.
func checkProcess(c lb.Check) error {
	if c.PIDFile != "" {
		pid, err := readPIDFile(c.PIDFile)
		if err != nil {
			return err
		}
		switch comm, running := processName(pid); {
		case !running:
			return fmt.Errorf("process %d of %s does not run", pid, c.PIDFile)
		case c.Process != "" && !isNamed(pid, comm, c.Process):
			return fmt.Errorf("process %d of %s is %s, not %s", pid, c.PIDFile, clean(comm), c.Process)
		}
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if comm, running := processName(pid); running && isNamed(pid, comm, c.Process) {
			return nil
		}
	}
	return fmt.Errorf("no process %s runs", c.Process)
}

// maxPIDFile is more than any number has digits.
const maxPIDFile = 64

func readPIDFile(name string) (int, error) {
	content, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("there is no file %s", name)
	}
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	// A server may write a second line, postmaster does.
	text, _, _ := strings.Cut(strings.TrimSpace(string(content[:min(len(content), maxPIDFile)])), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || pid < 1 {
		return 0, fmt.Errorf("%s does not hold the number of a process", name)
	}
	return pid, nil
}

// maxComm is how much of a name the kernel keeps, in bytes.
const maxComm = 15

// processName returns the kernel's name of a process, and whether it runs.
func processName(pid int) (comm string, running bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", false
	}
	// The name, in parentheses, may hold anything. The state follows it.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndex(stat, []byte(") "))
	if open < 0 || end < open || end+2 >= len(stat) {
		return "", false
	}
	state := stat[end+2]
	return string(stat[open+1 : end]), state != 'Z' && state != 'X'
}

// isNamed tells whether a process has a name: the kernel's for it, or, where that
// is cut off, the one of its program's file.
func isNamed(pid int, comm, name string) bool {
	if len(name) <= maxComm {
		return comm == name
	}
	if comm != name[:maxComm] {
		return false
	}
	if file, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil &&
		filepath.Base(strings.TrimSuffix(file, " (deleted)")) == name {
		return true
	}
	// A script: its interpreter is the file.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	for arg := range strings.SplitSeq(string(line), "\x00") {
		if filepath.Base(arg) == name {
			return true
		}
	}
	return false
}
