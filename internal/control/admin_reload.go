package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
)

// ErrRefused is in the error of a reload that the daemon has refused, or could not
// do. It says nothing itself: the daemon does.
var ErrRefused = errors.New("")

// reloaded is the answer to a reload.
type reloaded struct {
	Changes []string `json:"changes"` // in words
	Refused string   `json:"refused"` // why; "": it was done
}

// serveReload has the daemon apply its file.
func serveReload(d Daemon, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var answer reloaded
		var err error
		if answer.Changes, err = d.Reload(r.FormValue("dry_run") != ""); err != nil {
			answer.Refused = err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			log.Debug("answer a reload", "error", err)
		}
	}
}

// SendReload has the daemon behind the socket apply its file, or, dry, find out what
// that would change. It returns the changes. Where the daemon refuses, the error is
// ErrRefused with its reasons; where there is none, it is ErrNotRunning.
func SendReload(ctx context.Context, socket string, dry bool) (changes []string, err error) {
	path := "/reload"
	if dry {
		path += "?dry_run=1"
	}
	client := clientOf(socket)
	client.Timeout = 0 // first verdicts and handovers take the time that they take; the daemon bounds it
	response, err := send(ctx, client, socket, http.MethodPost, path, nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer reloaded
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if answer.Refused != "" {
		return answer.Changes, fmt.Errorf("%s%w", answer.Refused, ErrRefused)
	}
	return answer.Changes, nil
}
