package main

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The member is laid out by hand from cpio(5), "New ASCII Format".
func TestArchiveBytes(t *testing.T) {
	var b bytes.Buffer
	a := &archive{w: &b}
	a.consoleDevice()
	a.file("args", 0o644, []byte("hello"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	want := "070701" + // magic
		"00000001" + "00002180" + // inode; mode: character device, 0600
		"00000000" + "00000000" + "00000001" + "00000000" + // owner, group, links, time
		"00000000" + "00000000" + "00000000" + // size, device of the file system
		"00000005" + "00000001" + // this device
		"0000000C" + "00000000" + // size of the name, checksum
		"dev/console\x00" + "\x00\x00" +
		"070701" +
		"00000002" + "000081A4" + // mode: file, 0644
		"00000000" + "00000000" + "00000001" + "00000000" +
		"00000005" + "00000000" + "00000000" +
		"00000000" + "00000000" +
		"00000005" + "00000000" +
		"args\x00" + "\x00" +
		"hello" + "\x00\x00\x00" +
		"070701" +
		"00000003" + "00000000" +
		"00000000" + "00000000" + "00000001" + "00000000" +
		"00000000" + "00000000" + "00000000" +
		"00000000" + "00000000" +
		"0000000B" + "00000000" +
		"TRAILER!!!\x00" + "\x00\x00\x00"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestWriteInitramfs(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	put("kernel/modules/00-llc.ko", "llc")
	put("kernel/modules/01-stp.ko", "stp")
	put("data/deep/frame", "frame")
	put("doc/PATH.md", "path")
	put("doc/path.c", "int")
	p := payload{
		init: put("i", "the init"), test: put("t", "the test"),
		testdata: filepath.Join(dir, "data"), documents: filepath.Join(dir, "doc"), args: []string{"-a", "-b=c d"},
	}
	file := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(file, p, kernel{dir: filepath.Join(dir, "kernel")}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"40755 dev ", "40755 proc ", "40755 sys ", "40755 run ", "40755 tmp ", "40755 modules ", "40755 package ",
		"20600 dev/console ", "100644 args -a\n-b=c d", "100755 init the init", "100755 test the test",
		"40755 modules ", "100644 modules/00-llc.ko llc", "100644 modules/01-stp.ko stp",
		"40755 package/testdata ", "40755 package/testdata/deep ", "100644 package/testdata/deep/frame frame",
		"40755 bpf ", "100644 bpf/PATH.md path",
		"0 TRAILER!!! ",
	}
	if diff := cmp.Diff(want, members(t, content)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

// members lists an archive: "MODE NAME CONTENT" for each.
func members(t *testing.T, archive []byte) []string {
	t.Helper()
	var list []string
	field := func(at int, i int) int {
		n, err := strconv.ParseUint(string(archive[at+6+8*i:at+14+8*i]), 16, 32)
		if err != nil {
			t.Fatalf("member at %d: %v", at, err)
		}
		return int(n)
	}
	up := func(n int) int { return (n + 3) / 4 * 4 }
	for at := 0; at < len(archive); {
		mode, size, nameSize := field(at, 1), field(at, 6), field(at, 11)
		name := string(archive[at+110 : at+110+nameSize-1])
		data := up(at + 110 + nameSize)
		list = append(list, fmt.Sprintf("%o %s %s", mode, name, archive[data:data+size]))
		at = up(data + size)
	}
	return list
}

func TestReadTar(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	const base = "./lib/modules/6.12.1-amd64/kernel/"
	for _, name := range []string{
		"./boot/vmlinuz-6.12.1-amd64", "./boot/config-6.12.1-amd64",
		base + "drivers/net/veth.ko.xz", base + "drivers/net/wireless/vendor/radio.ko.xz",
		base + "net/bridge/bridge.ko.xz", base + "net/802/some-name.ko", base + "fs/ext4/ext4.ko.xz",
	} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	whole := b.Len()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	image, modules, err := readTar(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(image), "./boot/vmlinuz-6.12.1-amd64"; got != want {
		t.Errorf("the kernel is %q, want %q", got, want)
	}
	want := map[string]module{
		"veth":      {name: "veth", content: []byte(base + "drivers/net/veth.ko.xz"), packed: true},
		"bridge":    {name: "bridge", content: []byte(base + "net/bridge/bridge.ko.xz"), packed: true},
		"some_name": {name: "some_name", content: []byte(base + "net/802/some-name.ko")},
	}
	if diff := cmp.Diff(want, modules, cmp.AllowUnexported(module{})); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	if _, _, err := readTar(bytes.NewReader(b.Bytes()[:whole-100])); err == nil {
		t.Error("a truncated archive was read")
	}
}

// elfModule is a relocatable file of two sections: .modinfo, and the names of
// both.
func elfModule(info string) []byte {
	const header, sectionHeader = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := []byte("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9)) // 64 bit, little endian
	le := binary.LittleEndian
	b = le.AppendUint16(b, 1)  // relocatable
	b = le.AppendUint16(b, 62) // x86-64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, header) // of the sections' headers
	b = le.AppendUint32(b, 0)
	for _, n := range []uint16{header, 0, 0, sectionHeader, 3, 2} {
		b = le.AppendUint16(b, n)
	}
	section := func(name, kind uint32, offset, size int) {
		b = le.AppendUint32(b, name)
		b = le.AppendUint32(b, kind)
		for _, n := range []int{0, 0, offset, size} {
			b = le.AppendUint64(b, uint64(n))
		}
		b = append(b, make([]byte, 24)...)
	}
	data := header + 3*sectionHeader
	section(0, 0, 0, 0)
	section(1, 1, data, len(info))
	section(10, 3, data+len(info), len(names))
	return append(append(b, info...), names...)
}

func TestLoadOrder(t *testing.T) {
	available := map[string]module{}
	for name, info := range map[string]string{
		"bridge": "license=GPL\x00depends=stp,llc\x00name=bridge\x00",
		"stp":    "depends=llc\x00",
		"llc":    "depends=\x00",
		"veth":   "license=GPL\x00",
		"lost":   "depends=not-there\x00",
	} {
		available[name] = module{name: name, content: elfModule(info)}
	}
	available["broken"] = module{name: "broken", content: []byte("no ELF")}

	l := loadOrder{ctx: t.Context(), available: available}
	for _, name := range []string{"veth", "bridge", "stp"} {
		if err := l.add(name); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, m := range l.modules {
		got = append(got, m.name)
	}
	if diff := cmp.Diff([]string{"veth", "llc", "stp", "bridge"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}

	for name, want := range map[string]string{"lost": "find module not_there", "broken": "read what module broken needs"} {
		if err := l.add(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error of %s is %v, want one that has %q", name, err, want)
		}
	}
}
