// Package command runs programs that the configuration names: those of checks
// and recoveries, and hooks. None sees a shell, and each has a process group of
// its own, which ends with it when its time is over.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Command is a program to run.
type Command struct {
	Args []string // program and arguments; a program without a slash is looked for in PATH
	User string   // name or number of who runs it; "": the daemon's own user
	Env  []string // KEY=VALUE, besides the daemon's environment
}

// Run runs the command to its end. What it writes goes to this process's
// standard error, a descriptor that whatever it leaves running may keep. When
// ctx ends, the whole process group is killed, and the error is that of ctx.
func (c Command) Run(ctx context.Context) error {
	cmd, err := c.prepare(ctx, os.Stderr)
	if err != nil {
		return err
	}
	return run(ctx, cmd)
}

// maxOutput is how much of an output Output keeps, in bytes.
const maxOutput = 4096

// straggle is how long Output waits for the end of the output after that of the
// command: what it has left running may hold it open.
const straggle = 100 * time.Millisecond

// Output is Run with the first line of the output, which is not blank; "" if
// there is none.
func (c Command) Output(ctx context.Context) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("open pipe: %w", err)
	}
	cmd, err := c.prepare(ctx, w)
	if err != nil {
		return "", errors.Join(err, r.Close(), w.Close())
	}
	var output bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		// Both end with the pipe, in whatever way.
		_, _ = io.CopyN(&output, r, maxOutput)
		_, _ = io.Copy(io.Discard, r)
	}()
	err = run(ctx, cmd)
	_ = w.Close() // the command has its own
	timer := time.NewTimer(straggle)
	defer timer.Stop()
	select {
	case <-read:
	case <-timer.C:
	}
	_ = r.Close() // nothing more is wanted of it
	<-read
	for line := range strings.Lines(output.String()) {
		if line = strings.TrimSpace(line); line != "" {
			return line, err
		}
	}
	return "", err
}

func (c Command) prepare(ctx context.Context, out *os.File) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), c.Env...)
	// Files, not writers: Wait is to wait for the command, not for what it leaves.
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	if c.User == "" {
		return cmd, nil
	}
	credential, err := credentialOf(c.User)
	if err != nil {
		return nil, fmt.Errorf("run %s as %s: %w", c.Args[0], c.User, err)
	}
	cmd.SysProcAttr.Credential = credential
	return cmd, nil
}

func run(ctx context.Context, cmd *exec.Cmd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		// The error names the program.
		return fmt.Errorf("start: %w", err)
	}
	err := cmd.Wait()
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // rather than that it was killed
	}
	return err
}

func credentialOf(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, errors.New("there is no such user")
		}
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("look up groups: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user id: %w", err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("group id: %w", err)
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, g := range groups {
		id, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group id: %w", err)
		}
		c.Groups = append(c.Groups, uint32(id))
	}
	return c, nil
}
