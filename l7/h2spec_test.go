package l7

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
)

// h2specExceptions are the cases of h2spec that fail, by section and words, and why.
var h2specExceptions = map[string]string{
	"http2/4.2: Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE": "" +
		"it does not: it has 20 KB, and net/http takes frames of 1 MB. The answer is 431, since the head is too long",
	"http2/6.5.3: Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE": "" +
		"net/http takes no setting twice in a frame, which no client does that means well",
	"http2/8.1.2.2: Sends a HEADERS frame that contains the connection-specific header field": "" +
		"the answer is 400, and not a stream error: a server may say what is wrong (section 8.1.2.6)",
	"http2/8.1.2.2: Sends a HEADERS frame that contains the TE header field with any value other than \"trailers\"": "" +
		"the same",
}

// h2specLeast is how many cases must pass.
const h2specLeast = 138

// A h2specReport is what h2spec writes, as JUnit does.
type h2specReport struct {
	Suites []struct {
		Package string `xml:"package,attr"`
		Cases   []struct {
			Package string  `xml:"package,attr"`
			Words   string  `xml:"classname,attr"`
			Failure *string `xml:"failure"`
			Error   *string `xml:"error"`
			Skipped *string `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// What h2spec, a client that breaks the rules of HTTP/2, demands of a server.
func TestH2Spec(t *testing.T) {
	out, err := exec.Command("go", "tool", "-n", "h2spec").CombinedOutput()
	if err != nil {
		t.Fatalf("build h2spec: %v\n%s", err, out)
	}
	at := freePort(t)
	files := tlsFiles(t, "a.example")
	c := one(at, []lb.Upstream{upstreamOf("u", backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello, world") }))}, prefix("/", "u"))
	c.Servers[0].Listen[0].TLS = &files
	start(t, c)
	path := filepath.Join(t.TempDir(), "report.xml")
	cmd := exec.Command(strings.TrimSpace(string(out)), "-h", at.Addr().String(), "-p", fmt.Sprint(at.Port()), "-t", "-k", "-o", "3", "-j", path)
	said, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	var report h2specReport
	if err := xml.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	passed, all := 0, 0
	failed := map[string]string{}
	for _, s := range report.Suites {
		for _, c := range s.Cases {
			all++
			name := c.Package + ": " + c.Words
			switch {
			case c.Failure != nil:
				failed[name] = *c.Failure
			case c.Error != nil:
				failed[name] = *c.Error
			case c.Skipped != nil:
				failed[name] = "skipped"
			default:
				passed++
			}
		}
	}
	for name, why := range failed {
		if h2specExceptions[name] == "" {
			t.Errorf("%s\n%s", name, why)
		}
	}
	for name := range h2specExceptions {
		if failed[name] == "" {
			t.Errorf("%s: it passes, and is no exception any more", name)
		}
	}
	t.Logf("%d of %d cases pass", passed, all)
	if passed < h2specLeast {
		t.Errorf("%d of %d cases pass, want %d", passed, all, h2specLeast)
	}
}
