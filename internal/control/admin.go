package control

import (
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

// Listen opens the admin socket. A socket file that a killed daemon left is
// replaced; one where somebody answers, or a file of another kind, is an error.
func Listen(path string, status func() Status, log *slog.Logger) (*Admin, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("open the admin socket: another process answers on %s", path)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open the admin socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(status()); err != nil {
			log.Debug("answer a status request", "error", err)
		}
	})
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
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}, Timeout: askTimeout}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sluice/status", nil)
	if err != nil {
		return s, fmt.Errorf("ask the daemon: %w", err)
	}
	response, err := client.Do(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return s, fmt.Errorf("ask the daemon on %s: %w", socket, ErrNotRunning)
	}
	if err != nil {
		return s, fmt.Errorf("ask the daemon on %s: %w", socket, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200))
		return s, fmt.Errorf("ask the daemon on %s: it answered %s: %s", socket, response.Status, text)
	}
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return s, nil
}
