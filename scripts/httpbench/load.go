package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// report has wrk tell its result in a form that is read by programs.
const report = `
done = function(summary, latency, requests)
	local e = summary.errors
	io.write(string.format('\n{"requests": %d, "duration_us": %d, "p99_us": %d, "errors": %d}\n',
		summary.requests, summary.duration, latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
`

// browser is what a browser says of itself: heads are as long as they usually are.
var browser = []string{
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
	"Accept-Language: en-US,en;q=0.5",
	"Accept-Encoding: gzip, deflate",
}

// A loaded is what wrk has seen.
type loaded struct {
	Requests   int64 `json:"requests"`
	DurationUS int64 `json:"duration_us"`
	P99US      int64 `json:"p99_us"`
	Errors     int64 `json:"errors"`
}

// load has wrk ask a proxy as fast as it answers.
func (b *bench) load(ctx context.Context, at netip.AddrPort, c benchCase) (loaded, error) {
	args := []string{"-t1", "-c", strconv.Itoa(c.connections), "-d", strconv.Itoa(int(b.task.length / time.Second)), "-s", b.lua}
	for _, h := range browser {
		args = append(args, "-H", h)
	}
	if c.once {
		args = append(args, "-H", "Connection: close")
	}
	args = append(args, fmt.Sprintf("http://%v%s", at, c.path))
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, b.wrk, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := testenv.OnCPUs(b.ofLoad, func() error { return b.host.Do(cmd.Start) })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return loaded{}, fmt.Errorf("run wrk: %w: %s", err, out.Bytes())
	}
	return parseLoad(out.Bytes())
}

// parseLoad reads what report has written.
func parseLoad(out []byte) (loaded, error) {
	var l loaded
	i := bytes.LastIndex(out, []byte("\n{"))
	if i < 0 {
		return l, fmt.Errorf("wrk has no result: %s", out)
	}
	if err := json.Unmarshal(out[i:], &l); err != nil {
		return l, fmt.Errorf("read wrk's result: %w: %s", err, out)
	}
	if l.Errors > 0 || l.Requests == 0 {
		return l, fmt.Errorf("%d requests, %d errors: %s", l.Requests, l.Errors, out)
	}
	return l, nil
}

// cpuTime is the processor time that a process and its children have taken, user and
// system, of threads that have ended, too. /proc would tell it in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // of the clocks that a process has: see clock_getcpuclockid(3)
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &t); err != nil {
		return 0, fmt.Errorf("ask for the time of process %d: %w", pid, err)
	}
	sum := time.Duration(t.Nano())
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, fmt.Errorf("ask for the children of process %d: %w", pid, err)
	}
	for child := range strings.FieldsSeq(string(children)) {
		n, err := strconv.Atoi(child)
		if err != nil {
			return 0, fmt.Errorf("the children of process %d: %w", pid, err)
		}
		t, err := cpuTime(n)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}
