package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// wantedModules are what tests build networks of. Nothing in the virtual machine
// loads one on demand, so all are loaded at its start.
var wantedModules = []string{
	"veth", "bridge", "dummy", "macvlan", "8021q", "sch_ingress", "cls_bpf",
}

// unpack takes the kernel and the wanted modules with what they depend on out of
// a package. The modules are named so that they load in the order of their names.
func unpack(ctx context.Context, deb, dir string) error {
	image, modules, err := readPackage(ctx, deb)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return fmt.Errorf("make a directory for a kernel: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), image, 0o644); err != nil {
		return fmt.Errorf("unpack a kernel: %w", err)
	}
	l := loadOrder{ctx: ctx, available: modules}
	for _, name := range wantedModules {
		// What is not there as a module may be built in.
		if _, found := modules[name]; !found {
			continue
		}
		if err := l.add(name); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	for i, m := range l.modules {
		name := filepath.Join(dir, "modules", fmt.Sprintf("%02d-%s.ko", i, m.name))
		if err := os.WriteFile(name, m.content, 0o644); err != nil {
			return fmt.Errorf("unpack a module: %w", err)
		}
	}
	return nil
}

// A module is a kernel module, by its name with underscores.
type module struct {
	name    string
	content []byte
	packed  bool // with xz
}

// readPackage returns the kernel in a package, and the modules of its network.
func readPackage(ctx context.Context, deb string) (image []byte, modules map[string]module, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	image, modules, err = readTar(out)
	if err != nil {
		cancel() // nobody reads on
		_ = cmd.Wait()
		return nil, nil, err
	}
	// What follows the archive's end is padding.
	if _, err := io.Copy(io.Discard, out); err != nil {
		return nil, nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, nil, fmt.Errorf("run dpkg-deb: %w", err)
	}
	if image == nil {
		return nil, nil, errors.New("no kernel is in it")
	}
	return image, modules, nil
}

// readTar returns the kernel in the archive of a package's files, and those
// modules that a network may need, by name.
func readTar(r io.Reader) (image []byte, modules map[string]module, err error) {
	modules = map[string]module{}
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return image, modules, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the package's files: %w", err)
		}
		name := path.Clean("/" + header.Name)
		isImage := strings.HasPrefix(name, "/boot/vmlinuz-")
		if header.Typeflag != tar.TypeReg || !isImage && !isNetworkModule(name) {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", name, err)
		}
		if isImage {
			image = content
			continue
		}
		m := moduleOf(name, content)
		modules[m.name] = m
	}
}

// isNetworkModule tells whether a file is a module of the network stack or of a
// virtual interface; drivers of hardware are in directories below.
func isNetworkModule(name string) bool {
	_, below, found := strings.Cut(name, "/kernel/")
	return found && strings.Contains(path.Base(name), ".ko") &&
		(strings.HasPrefix(below, "net/") || path.Dir(below) == "drivers/net")
}

func moduleOf(file string, content []byte) module {
	name, extension, _ := strings.Cut(path.Base(file), ".")
	return module{name: strings.ReplaceAll(name, "-", "_"), content: content, packed: extension == "ko.xz"}
}

// A loadOrder puts modules after those that they depend on.
type loadOrder struct {
	ctx       context.Context
	available map[string]module
	modules   []module // unpacked
}

// add appends a module and what it needs, each once.
func (l *loadOrder) add(name string) error {
	if slices.ContainsFunc(l.modules, func(m module) bool { return m.name == name }) {
		return nil
	}
	m, found := l.available[name]
	if !found {
		return fmt.Errorf("find module %s: it is not among those of the network", name)
	}
	if m.packed {
		content, err := decompress(l.ctx, m.content)
		if err != nil {
			return fmt.Errorf("unpack module %s: %w", name, err)
		}
		m.content, m.packed = content, false
	}
	needs, err := dependencies(m.content)
	if err != nil {
		return fmt.Errorf("read what module %s needs: %w", name, err)
	}
	for _, need := range needs {
		if err := l.add(need); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	l.modules = append(l.modules, m)
	return nil
}

func decompress(ctx context.Context, content []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout")
	cmd.Stdin = bytes.NewReader(content)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run xz: %w", err)
	}
	return out, nil
}

// dependencies returns the names of the modules that a module says it needs.
func dependencies(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, found := strings.CutPrefix(string(field), "depends="); found {
			return strings.FieldsFunc(strings.ReplaceAll(list, "-", "_"), func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
