package health

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/command"
)

// probeExec runs the command of t for its server, and succeeds if it ends with exit
// code 0 in time. The command knows the server by its arguments and its environment.
func probeExec(ctx context.Context, t Target) (answer string, err error) {
	e := t.Endpoint()
	address, port := e.Addr().String(), strconv.Itoa(int(e.Port()))
	c := command.Command{User: t.Probe.User, Env: []string{"SLUICE_SERVER=" + address, "SLUICE_PORT=" + port}}
	if len(t.Probe.Command) == 0 {
		return "", errors.New("run probe: there is no command")
	}
	places := strings.NewReplacer("{address}", address, "{port}", port)
	for _, arg := range t.Probe.Command {
		c.Args = append(c.Args, places.Replace(arg))
	}
	return execute(ctx, c, t.Probe.Timeout)
}

// execute runs a command, which fails unless it ends with exit code 0 before ctx does;
// timeout is when that is. The answer is the first line that it wrote; where it wrote
// none, how it ended.
func execute(ctx context.Context, c command.Command, timeout time.Duration) (answer string, err error) {
	line, err := c.Output(ctx)
	answer = clean(line)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return answer, fmt.Errorf("no end within %v: killed", timeout)
	case err != nil && line != "":
		return answer, fmt.Errorf("%s (%w)", answer, err)
	case err == nil && line == "":
		return "exit code 0", nil
	}
	return answer, err
}
