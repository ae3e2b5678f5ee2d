package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Admin serves commands on a Unix socket that only its owner may open: HTTP with
// JSON bodies.
type Admin struct {
	server *http.Server
	done   chan struct{}
	log    *slog.Logger
}

// A Daemon is who answers on the socket.
type Daemon interface {
	Status() Status
	// Change makes an operator's change. Text says what has become of it.
	Change(Change) (text string, err error)
	// Events returns the events behind a number, as lines, and the number of the
	// last one. More is closed when there is another.
	Events(after uint64) (lines [][]byte, last uint64, more <-chan struct{})
	// Reload applies the configuration file, or with dry finds out what that would
	// change. It returns the changes, in words.
	Reload(dry bool) (changes []string, err error)
	// HandOver carries out an operator's wish to move VIPs, and waits for its end.
	HandOver(HandoverOrder) ([]HandoverResult, error)
	// Probe runs probes now, and waits for their end, or that of ctx.
	Probe(context.Context, ProbeOrder) ([]ProbeResult, error)
}

// changed is the answer to a Change.
type changed struct {
	Text string `json:"text"`
}

// Listen opens the admin socket. A socket file that a killed daemon left is
// replaced; one where somebody answers, or a file of another kind, is an error.
func Listen(path string, d Daemon, log *slog.Logger) (*Admin, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return nil, fmt.Errorf("open the admin socket: another process answers on %s", path)
	case errors.Is(err, syscall.EAGAIN): // so many wait for it already that there is room for no more
		return nil, fmt.Errorf("open the admin socket: another process has %s, and hangs: end it, or name another admin.socket", path)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	l, err := listenOwn(path)
	if err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(d.Status()); err != nil {
			log.Debug("answer a status request", "error", err)
		}
	})
	mux.HandleFunc("GET /events", serveEvents(d, log))
	mux.HandleFunc("POST /reload", serveReload(d, log))
	mux.HandleFunc("POST /backend", command(log, func(c Change) (answer changed, err error) {
		answer.Text, err = d.Change(c)
		return answer, err
	}))
	mux.HandleFunc("POST /handover", command(log, d.HandOver))
	mux.HandleFunc("POST /probe", func(w http.ResponseWriter, r *http.Request) {
		command(log, func(o ProbeOrder) ([]ProbeResult, error) { return d.Probe(r.Context(), o) })(w, r)
	})
	serveProfiles(mux)
	a := &Admin{
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second},
		done:   make(chan struct{}), log: log,
	}
	go func() {
		defer close(a.done)
		if err := a.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the admin socket has failed", "error", err)
		}
	}()
	return a, nil
}

// listenOwn listens on a socket that only its owner may connect to. It takes its mode
// from the descriptor when it is bound: changed later, it would be open for a moment.
func listenOwn(path string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	return config.Listen(context.Background(), "unix", path)
}

// command handles a request with a JSON body that do carries out.
func command[Q, A any](log *slog.Logger, do func(Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var question Q
		var answer A
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&question)
		if err == nil {
			answer, err = do(question)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			log.Debug("answer a command", "error", err)
		}
	}
}

// removeSocket removes a socket file, if there is one, and nothing else: a slip
// in the configuration must not cost a file.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: name another path, or move it away", path)
	}
	return os.Remove(path)
}

// Close ends the server and removes the socket.
func (a *Admin) Close() error {
	err := a.server.Close()
	<-a.done
	return err
}

// ErrNotRunning is the error of a question that no daemon was there to answer.
var ErrNotRunning = errors.New("sluice is not running")

// askTimeout is how long a daemon may take to answer. One that is stopped still
// has a socket that accepts.
const askTimeout = 10 * time.Second

// Ask gets the status from the daemon behind the socket. Where there is none,
// the error is ErrNotRunning.
func Ask(ctx context.Context, socket string) (Status, error) {
	var s Status
	err := ask(ctx, askTimeout, socket, http.MethodGet, "/status", nil, &s)
	return s, err
}

// SendChange has the daemon behind the socket make an operator's change. Where
// there is no daemon, the error is ErrNotRunning.
func SendChange(ctx context.Context, socket string, c Change) (text string, err error) {
	var answer changed
	err = ask(ctx, askTimeout, socket, http.MethodPost, "/backend", c, &answer)
	return answer.Text, err
}

// ask asks a question and reads the answer; a timeout of 0 is none.
func ask(ctx context.Context, timeout time.Duration, socket, method, path string, question, answer any) error {
	var body io.Reader
	if question != nil {
		text, err := json.Marshal(question)
		if err != nil {
			return fmt.Errorf("ask the daemon: %w", err)
		}
		body = bytes.NewReader(text)
	}
	response, err := send(ctx, clientOf(socket), socket, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// send returns an answer that is good; whoever gets it closes its body.
func send(ctx context.Context, client *http.Client, socket, method, path string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://sluice"+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	response, err := client.Do(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("ask the daemon on %s: %w", socket, ErrNotRunning)
	}
	if errors.Is(err, syscall.EAGAIN) {
		return nil, fmt.Errorf("ask the daemon on %s: it hangs: it takes no more questions", socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon on %s: %w", socket, err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusBadRequest {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 200))
	return nil, fmt.Errorf("ask the daemon on %s: it answered %s: %s", socket, response.Status, text)
}
