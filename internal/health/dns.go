package health

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// probeDNS succeeds if the server answers the query over UDP with NOERROR and with
// one record at least. A datagram that does not answer this query (another id or
// question) counts for nothing.
func probeDNS(ctx context.Context, t Target, to netip.AddrPort) (answer string, err error) {
	id := uint16(rand.Uint32())
	name, err := dnsmessage.NewName(t.Probe.Query.Name)
	if err != nil {
		return "", fmt.Errorf("ask for %v: %w", t.Probe.Query, err)
	}
	question := dnsmessage.Question{Name: name, Type: dnsmessage.Type(t.Probe.Query.Type), Class: dnsmessage.ClassINET}
	query := dnsmessage.Message{
		Header: dnsmessage.Header{ID: id, RecursionDesired: true}, Questions: []dnsmessage.Question{question},
	}
	packet, err := query.Pack()
	if err != nil {
		return "", fmt.Errorf("ask for %v: %w", t.Probe.Query, err)
	}
	conn, err := dialUDP(ctx, to)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	defer endWith(ctx, conn)()
	if _, err := conn.Write(packet); err != nil {
		return "", explain("send query", err, fmt.Errorf("query not sent within %v", t.Probe.Timeout))
	}
	buf := make([]byte, maxDatagram)
	stray := ""
	for {
		n, err := conn.Read(buf)
		if err != nil {
			late := fmt.Errorf("%w within %v%s", errSilent, t.Probe.Timeout, stray)
			return "", explain("read answer", err, late)
		}
		answer, err := readAnswer(buf[:n], id, question)
		if errors.Is(err, errStray) {
			stray = fmt.Sprintf(" (what came: %v)", err)
			continue
		}
		return answer, err
	}
}

// errStray says that a datagram does not answer the query.
var errStray = errors.New("no answer to this query")

// readAnswer reads a datagram that may answer a question with this id.
func readAnswer(packet []byte, id uint16, asked dnsmessage.Question) (answer string, err error) {
	var p dnsmessage.Parser
	header, err := p.Start(packet)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: it is no DNS", errStray)
	case !header.Response:
		return "", fmt.Errorf("%w: it is a query", errStray)
	case header.ID != id:
		return "", fmt.Errorf("%w: it has another id", errStray)
	}
	questions, err := p.AllQuestions()
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: its question cannot be read", errStray)
	case len(questions) == 0 && header.RCode != dnsmessage.RCodeSuccess: // a server need not understand the query to refuse it
	case len(questions) != 1 || !sameQuestion(questions[0], asked):
		return "", fmt.Errorf("%w: it has another question", errStray)
	}
	code := rcode(header.RCode)
	records, err := countAnswers(&p)
	answer = fmt.Sprintf("%s, %d records", code, records)
	if records == 1 {
		answer = code + ", 1 record"
	}
	switch {
	case header.RCode != dnsmessage.RCodeSuccess:
		return code, fmt.Errorf("answer is %s", code)
	case err != nil:
		return answer, fmt.Errorf("answer cannot be read: %s", clean(err.Error()))
	case records == 0 && header.Truncated:
		return answer, errors.New("answer is cut short, and without a record")
	case records == 0:
		return answer, errors.New("answer has no record")
	}
	return answer, nil
}

// countAnswers counts the records of an answer that can be read.
func countAnswers(p *dnsmessage.Parser) (n int, err error) {
	for {
		switch err := p.SkipAnswer(); {
		case errors.Is(err, dnsmessage.ErrSectionDone):
			return n, nil
		case err != nil:
			return n, err
		}
		n++
	}
}

// sameQuestion compares names as name servers do, whatever their case.
func sameQuestion(a, b dnsmessage.Question) bool {
	return a.Type == b.Type && a.Class == b.Class && strings.EqualFold(a.Name.String(), b.Name.String())
}

// rcode is the name of a response code, as tools print it.
func rcode(c dnsmessage.RCode) string {
	names := map[dnsmessage.RCode]string{
		dnsmessage.RCodeSuccess: "NOERROR", dnsmessage.RCodeFormatError: "FORMERR", dnsmessage.RCodeServerFailure: "SERVFAIL",
		dnsmessage.RCodeNameError: "NXDOMAIN", dnsmessage.RCodeNotImplemented: "NOTIMP", dnsmessage.RCodeRefused: "REFUSED",
	}
	if name, ok := names[c]; ok {
		return name
	}
	return fmt.Sprintf("RCODE %d", uint16(c))
}
