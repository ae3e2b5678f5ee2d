package loader

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

const (
	// stageProgram is the program that ends after one of its stages.
	stageProgram = "bench_stage"
	// stageRounds are fewer than benchRounds: there are many cases.
	stageRounds = 9
)

// benchStages are the stages that it may end after, by the names of their figures.
var benchStages = []struct {
	stage benchBenchStage
	name  string
}{
	{benchBenchStageSTAGE_MOVE, "move"},
	{benchBenchStageSTAGE_FRAME, "frame"},
	{benchBenchStageSTAGE_VIP, "vip"},
	{benchBenchStageSTAGE_SERVICE, "service"},
	{benchBenchStageSTAGE_HASH, "hash"},
	{benchBenchStageSTAGE_SLOT, "slot"},
	{benchBenchStageSTAGE_CHECKS, "checks"},
	{benchBenchStageSTAGE_BACKEND, "backend"},
	{benchBenchStageSTAGE_COUNT, "count"},
	{benchBenchStageSTAGE_SEND, "send"},
}

// stage loads the program that ends after a stage, on the maps that the others have.
func (b *bench) stage(t *testing.T, stage benchBenchStage) *ebpf.Program {
	t.Helper()
	spec := benchSpec(t, b.d, b.options)
	spec.Programs = map[string]*ebpf.ProgramSpec{stageProgram: spec.Programs[stageProgram]}
	if err := spec.Variables["stage"].Set(stage); err != nil {
		t.Fatal(err)
	}
	return newBenchCollection(t, spec, b.d, b.maps).Programs[stageProgram]
}

// The program of all stages does what the one that forwards does, and ends after each of
// them with what it should have found by then.
func TestStagesAgree(t *testing.T) {
	testenv.RequireRoot(t)
	s := service("web", lb.DSR, 80, backends(16, 80))
	o := Options{MaxFlows: 1024, Ports: allPorts}
	b := &bench{d: newDatapathWith(t, o, natTimeouts, s), options: o}
	b.load(t)
	b.fill(t, []benchBenchFlow{{Saddr: 0x076433c6, Daddr: 0x640200c0, Source: bigEndian16(40000), Dest: bigEndian16(80)}})
	frame := b.frame(t, 0x10)
	left := func(p *ebpf.Program, expect uint32) []byte {
		t.Helper()
		runBench(t, b.d, p, b.state, 1, frame, expect, 1, 0)
		out := make([]byte, len(frame))
		if _, err := p.Run(&ebpf.RunOptions{Data: frame, DataOut: out}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := left(b.pipeline, xdpTX)
	for _, stage := range benchStages {
		expect := uint32(xdpPass)
		if stage.stage == benchBenchStageSTAGE_SEND {
			expect = xdpTX
		}
		got := left(b.stage(t, stage.stage), expect)
		if sent := bytes.Equal(got, want); sent != (expect == xdpTX) {
			t.Errorf("%s: sent as it should be: %v (-want +got):\n%s", stage.name, sent, cmp.Diff(hex.Dump(want), hex.Dump(got)))
		}
	}
}

// TestStageFigures measures where the time of a packet goes, as `make bench-stages`
// prints it: by programs that end after a stage, and by packets that leave the program
// on their way. All take turns, as in TestFigures; the figures are above the empty
// program. First with nothing else loaded, then beside a million flows of nat.
func TestStageFigures(t *testing.T) {
	if !*figures {
		t.Skip("measures only with -figures")
	}
	testenv.RequireRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dsr, tunnel := newBench(t, lb.DSR, false), newBench(t, lb.Tunnel, false)
	ack := dsr.frame(t, 0x10)
	empty := &benchCase{name: "empty", bench: dsr, program: dsr.programs["bench_empty"], flows: maxFlows, frame: ack, expect: xdpPass}
	whole := func() []*benchCase {
		return slices.Concat(
			byFlows("dsr", dsr, dsr.pipeline, ack, xdpTX),
			byFlows("tunnel", tunnel, tunnel.programs["bench_tunnel"], ack, xdpTX))
	}
	cases := []*benchCase{empty}
	for _, stage := range benchStages {
		expect := uint32(xdpPass)
		if stage.stage == benchBenchStageSTAGE_SEND {
			expect = xdpTX
		}
		cases = append(cases, byFlows("dsr_stage."+stage.name, dsr, dsr.stage(t, stage.stage), ack, expect)...)
	}
	measureAbove(t, "", empty, append(cases, whole()...))

	reply := newBench(t, lb.NAT, false)
	reply.establish(t)
	answers := reply.answers(t)
	reply.fill(t, answers)
	// The same of backends' ports that no pair has.
	strange := *reply
	strange.load(t)
	for i := range answers {
		answers[i].Source = bigEndian16(81)
	}
	strange.fill(t, answers)
	stray, last, other := slices.Clone(ack), slices.Clone(ack), slices.Clone(ack)
	stray[0] ^= 2                // another NIC's MAC address
	last[22] = 1                 // no hop left
	other[12], other[13] = 8, 17 // no IP
	empty.times = nil
	measureAbove(t, ".beside_nat", empty, slices.Concat([]*benchCase{empty}, whole(),
		byFlows("reply_stage.not_ip", reply, reply.pipeline, other, xdpPass),
		byFlows("reply_stage.other_mac", reply, reply.pipeline, stray, xdpPass),
		byFlows("reply_stage.no_pair", &strange, strange.pipeline, ack, xdpPass),
		byFlows("reply_stage.flow", reply, reply.pipeline, last, xdpDrop),
		byFlows("reply", reply, reply.pipeline, ack, xdpTX)))
}

// byFlows makes cases of a program on one flow, on some and on many.
func byFlows(name string, b *bench, program *ebpf.Program, frame []byte, expect uint32) []*benchCase {
	var cases []*benchCase
	for _, flows := range []int{1, 65536, maxFlows} {
		cases = append(cases, &benchCase{
			name: fmt.Sprintf("%s.%d", name, flows), bench: b, program: program, flows: min(flows, b.flows), frame: frame, expect: expect,
		})
	}
	return cases
}

// measureAbove runs the cases in turns, and prints what each takes above the first.
func measureAbove(t *testing.T, suffix string, empty *benchCase, cases []*benchCase) {
	t.Helper()
	for range stageRounds {
		for _, c := range cases {
			c.run(t)
		}
	}
	fmt.Printf("figure: stages.empty%s.ns %.1f ns\n", suffix, empty.least())
	for _, c := range cases[1:] {
		fmt.Printf("figure: stages.%s%s.above_empty.ns %.1f ns\n", c.name, suffix, c.least()-empty.least())
	}
}
