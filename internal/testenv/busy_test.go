package testenv

import (
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// Busy processes burn until they are stopped, or until who started them is gone.
func TestBusyProcessesEnd(t *testing.T) {
	stop, err := StartBusy(3)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(leftChildren()); n != 3 {
		t.Errorf("%d processes run, want 3", n)
	}
	stop()
	stop()
	if left := leftChildren(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}

	// The parent of this one has ended already.
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command("/bin/sh", "-c", burn, "busy", strconv.Itoa(gone.Process.Pid))
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { _ = orphan.Process.Kill() })
	defer kill.Stop()
	if err := orphan.Wait(); err != nil {
		t.Errorf("it goes on without its parent: %v", err)
	}
}
