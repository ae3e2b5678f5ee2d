package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/sluice-lb/sluice/internal/events"
)

// readerPatience is how long a reader of events may keep the daemon from handing on
// the next ones. A slower one is let go; it may ask again for what it has not got.
const readerPatience = time.Minute

// serveEvents answers with the events behind a number, a line for each, and goes on
// with those that follow where that is asked for.
func serveEvents(d Daemon, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
		if err != nil {
			http.Error(w, "after: want the number of an event", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		out := http.NewResponseController(w)
		for {
			lines, last, more := d.Events(after)
			after = last
			err := out.SetWriteDeadline(time.Now().Add(readerPatience))
			for _, line := range lines {
				if err == nil {
					_, err = w.Write(line)
				}
			}
			if err == nil {
				err = out.Flush()
			}
			if err != nil {
				log.Debug("answer a request for events", "error", err)
				return
			}
			if r.FormValue("follow") == "" {
				return
			}
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// AskEvents hands the events behind a number, which the daemon behind the socket
// has, to use; with follow also those that come, until ctx ends, the daemon does, or
// use returns an error. Where there is no daemon, the error is ErrNotRunning.
func AskEvents(ctx context.Context, socket string, after uint64, follow bool, use func(events.Event) error) error {
	path := fmt.Sprintf("/events?after=%d", after)
	client := clientOf(socket)
	if follow {
		path += "&follow=1"
		client.Timeout = 0
	}
	response, err := send(ctx, client, socket, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the daemon is gone
			return fmt.Errorf("read the daemon's events: %w", err)
		}
		e, err := events.Decode(line)
		if err == nil {
			err = use(e)
		}
		if err != nil {
			return err
		}
	}
}

// clientOf returns a client of the daemon behind a socket.
func clientOf(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}, Timeout: askTimeout}
}
