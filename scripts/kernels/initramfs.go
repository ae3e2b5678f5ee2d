package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A payload is what runs in a virtual machine, by file.
type payload struct {
	init, test string
	testdata   string // directory, "" for none
	documents  string // directory whose Markdown files tests read as ../bpf/*.md, "" for none
	args       []string
}

// writeInitramfs writes a file system with the payload and the modules of a
// kernel, as the programs of scripts/kernels/init expect it.
func writeInitramfs(name string, p payload, k kernel) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("create initramfs: %w", err)
	}
	w := bufio.NewWriter(f)
	a := &archive{w: w}
	defer func() {
		if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
			err = fmt.Errorf("write initramfs: %w", err)
		}
	}()
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "modules", "package"} {
		a.dir(dir)
	}
	a.consoleDevice()
	a.file("args", 0o644, []byte(strings.Join(p.args, "\n")))
	if err := a.copy("init", 0o755, p.init); err != nil {
		return err
	}
	if err := a.copy("test", 0o755, p.test); err != nil {
		return err
	}
	if err := a.tree("modules", k.modules()); err != nil {
		return err
	}
	if p.testdata != "" {
		if err := a.tree("package/testdata", p.testdata); err != nil {
			return err
		}
	}
	if p.documents != "" {
		if err := a.markdown("bpf", p.documents); err != nil {
			return err
		}
	}
	return a.close()
}

// An archive writes the "newc" format of cpio, which the kernel reads. Its
// first error is kept and returned by close.
type archive struct {
	w       io.Writer
	entries int
	err     error
}

func (a *archive) file(name string, permissions fs.FileMode, content []byte) {
	a.entry(name, 0o100000|uint32(permissions), 0, 0, content)
}

func (a *archive) dir(name string) { a.entry(name, 0o040755, 0, 0, nil) }

// consoleDevice adds the device that the kernel opens for init, before init can
// mount /dev.
func (a *archive) consoleDevice() { a.entry("dev/console", 0o020600, 5, 1, nil) }

// entry writes one member. A header is of hexadecimal numbers of 8 digits; name
// and content are each padded to a multiple of 4 bytes.
func (a *archive) entry(name string, mode, major, minor uint32, content []byte) {
	if a.err != nil {
		return
	}
	a.entries++
	header := "070701"
	for _, n := range []uint32{
		uint32(a.entries), mode, 0, 0, 1, 0, // inode, mode, owner, group, links, time
		uint32(len(content)), 0, 0, major, minor,
		uint32(len(name) + 1), 0, // with a zero byte, checksum
	} {
		header += fmt.Sprintf("%08X", n)
	}
	for _, part := range []string{pad(header + name + "\x00"), pad(string(content))} {
		if _, err := io.WriteString(a.w, part); err != nil {
			a.err = err
			return
		}
	}
}

func pad(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }

func (a *archive) copy(name string, permissions fs.FileMode, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	a.file(name, permissions, content)
	return nil
}

// tree adds the files and directories below a directory, as name.
func (a *archive) tree(name, from string) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(below))
		switch {
		case e.IsDir():
			a.dir(to)
			return nil
		case e.Type().IsRegular():
			return a.copy(to, 0o644, p)
		}
		return fmt.Errorf("copy %s: neither file nor directory", p)
	})
}

// markdown adds the Markdown files in a directory, as name.
func (a *archive) markdown(name, from string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.md"))
	if err != nil {
		return fmt.Errorf("list documents: %w", err)
	}
	a.dir(name)
	for _, f := range files {
		if err := a.copy(path.Join(name, filepath.Base(f)), 0o644, f); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.err
}
