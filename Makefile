# Every target does its own set-up on a fresh Debian machine: what is missing is
# installed by apt-get, and nothing is asked.

SHELL = /bin/bash
.SHELLFLAGS = -eu -o pipefail -c

GO ?= go
GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PREFIX ?= /usr/local

.PHONY: build install generate check-generated demo lab lab-down test test-unprivileged bench bench-stages bench-sync bench-failover bench-http soak long test-kernels lint fuzz interop clean

build:
	$(GO) build -o bin/sluice ./cmd/sluice

install: build
	install -D -m 0755 bin/sluice $(DESTDIR)$(PREFIX)/sbin/sluice

# The committed objects are enough to build; this makes them from the C sources.
generate:
	scripts/setup generate
	$(GO) generate ./loader

check-generated:
	scripts/setup generate
	scripts/check-generated

# The main job in network namespaces: balancing, failover, the figures.
demo:
	scripts/setup demo
	$(GO) build -o bin/sluice ./cmd/sluice
	$(GO) run ./scripts/lab demo

# The same network, left up; `make lab-down` removes it.
lab:
	scripts/setup demo
	$(GO) build -o bin/sluice ./cmd/sluice
	$(GO) run ./scripts/lab up

lab-down:
	$(GO) run ./scripts/lab down

# All tests, a package at a time, since some measure time. As root, one that needs
# root and is skipped is a failure.
test:
	scripts/setup test
	SLUICE_REQUIRE_ROOT=$$(test "$$(id -u)" = 0 && echo 1) $(GO) test -race -p 1 -timeout 40m ./...

# The data plane, then state synchronisation, failover and the HTTP proxy.
bench:
	scripts/setup bench
	$(GO) test ./loader -run '^Test(Veth)?Figures$$' -count 1 -v -figures | grep -E '^(figure:|---|FAIL|ok|panic|#)'
	$(MAKE) --no-print-directory bench-sync
	$(MAKE) --no-print-directory bench-failover
	$(MAKE) --no-print-directory bench-http

# Where the time of a packet goes, stage by stage: some two minutes.
bench-stages:
	scripts/setup bench
	$(GO) test ./loader -run '^TestStageFigures$$' -count 1 -v -figures | grep -E '^(figure:|---|FAIL|ok|panic|#)'

# A million connections on their way to another node: some two minutes.
bench-sync:
	scripts/setup bench
	$(GO) test ./loader -run '^TestSync(Packet)?Figures$$' -count 1 -v -figures | grep -E '^(figure:|#|---|FAIL|ok|panic| )'

# How long a client waits when a VIP moves, beside keepalived: some nine minutes.
bench-failover:
	scripts/setup bench
	$(GO) build -o bin/sluice ./cmd/sluice
	$(GO) run ./scripts/failover

# What a request costs in the HTTP proxy, beside nginx and haproxy: some four minutes.
bench-http:
	scripts/setup bench
	$(GO) build -o bin/sluice ./cmd/sluice
	$(GO) build -o bin/httpbench ./scripts/httpbench
	bin/httpbench

# That nobody takes over from a node that is at work, on a machine that is busy beyond
# reason: SOAK of each configuration.
SOAK ?= 10m
soak:
	scripts/setup bench
	$(GO) build -o bin/sluice ./cmd/sluice
	$(GO) run ./scripts/failover --soak $(SOAK)

# What some tests show in a moment, for as long as it is meant, in some ten minutes: failover
# with as many connections as the limit of open files lets be, ten times in a row in each mode,
# upgrades of both nodes with as many, and servers that die at random for a minute.
CONNECTIONS ?= 16500
long:
	scripts/setup test
	SLUICE_REQUIRE_ROOT=1 $(GO) test ./cmd/sluice -run '^(TestNoConnectionBreaks|TestUpgradeOfBothNodes)$$' -count 1 -v -timeout 60m -sync.connections $(CONNECTIONS) -sync.rounds 10
	$(GO) test ./l7 -run '^TestServersDieUnderLoad$$' -count 1 -v -load.time 1m

# The packet tests on Debian's 6.1 and 6.12 kernels, in qemu.
test-kernels:
	scripts/setup kernels
	scripts/test-kernels

lint:
	$(GO) vet ./...
	$(GO) run $(GOLANGCI_LINT) run --allow-parallel-runners ./...

fuzz:
	$(GO) test ./vrrp -run '^$$' -fuzz . -fuzztime 60s
	$(GO) test ./internal/heartbeat -run '^$$' -fuzz . -fuzztime 60s
	$(GO) test ./internal/config -run '^$$' -fuzz . -fuzztime 60s
	$(GO) test ./internal/statesync -run '^$$' -fuzz . -fuzztime 60s
	$(GO) test ./l7 -run '^$$' -fuzz FuzzFraming -fuzztime 60s
	$(GO) test ./l7 -run '^$$' -fuzz FuzzSameRequests -fuzztime 60s
	$(GO) test ./internal/dns -run '^$$' -fuzz . -fuzztime 60s
	$(GO) test ./loader -run '^$$' -fuzz FuzzFrames -fuzztime 60s -parallel 1

# The tests against other implementations.
interop:
	scripts/setup test
	SLUICE_REQUIRE_ROOT=1 $(GO) test -count 1 -v -run 'Interop|Keepalived' ./vrrp ./cmd/sluice

clean:
	rm -rf bin
