# The verbs of this repository; CI calls nothing else. Every one is bounded in
# time, says what it is doing, and is quiet otherwise.

SHELL    := /bin/bash
GO       ?= go
PREFIX   ?= /usr/local
DESTDIR  ?=
DURATION ?= 5s
VERSION  ?=
RUN      ?= .
LONG     ?=
FUZZED   ?=
BLIND    ?=
VULNDB   ?= https://vuln.go.dev

# The commit is stamped in where git knows it; a checkout that git does not
# trust, or a tarball, builds all the same.
BUILDVCS := $(if $(shell git rev-parse HEAD 2>/dev/null),auto,false)
LDFLAGS  := -s -w $(if $(VERSION),-X main.number=$(VERSION))

STATICCHECK := $(GO) tool -modfile=contrib/tools.mod staticcheck

.PHONY: all build demo test race check fmt vet fix staticcheck example bench fuzz torture vuln packages install man clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(BUILDVCS) -ldflags "$(LDFLAGS)" -o bin/waypoint ./cmd/waypoint

# A server, a runner and a deployment in a temporary directory.
demo: build
	contrib/demo.sh

test:
	$(GO) test -p 3 -parallel 4 -timeout 10m ./...

# The scripts and the torture suite are for whole programs: they are part of test;
# torture has the detector in the program, and so have the scripts of each mode. What a
# snapshot is put to has one goroutine.
race:
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -short -skip '^(TestScript|FuzzSnapshot)$$' -shuffle=on -p 3 -parallel 4 -timeout 15m $$($(GO) list ./... | grep -v /contrib/torture$$)

check: fmt vet fix staticcheck example race

fmt:
	@echo "== gofmt"
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go' 2>/dev/null || find . -name '*.go')) && \
	if [ -n "$$out" ]; then echo "not formatted; run gofmt -w on:"; echo "$$out"; exit 1; fi

vet:
	@echo "== go vet"
	@$(GO) vet ./...
	@if $(GO) mod download -modfile=packaging/tools.mod github.com/CycloneDX/cyclonedx-go >/dev/null 2>&1; then \
		$(GO) vet -modfile=packaging/tools.mod -tags sbom ./packaging/sbom; \
	else echo "SKIPPED for packaging/sbom: its modules are not here and cannot be fetched"; fi

fix:
	@echo "== go fix -diff"
	@$(GO) fix -diff ./...

# Its module file is its own, so that go.mod shows what ships. Without a
# network, and never fetched before, it cannot be had.
staticcheck:
	@echo "== staticcheck"
	@if $(GO) tool -modfile=contrib/tools.mod -n staticcheck >/dev/null 2>&1; then $(STATICCHECK) ./...; \
	else echo "SKIPPED: staticcheck is not here and cannot be fetched"; fi

# What is known of vulnerabilities in what this program calls, on both
# architectures. It is no part of check: it asks a database on the network, or
# VULNDB, and what that says changes without a change here.
vuln:
	@echo "== govulncheck"
	@tool=$$($(GO) tool -modfile=contrib/tools.mod -n govulncheck 2>/dev/null) || \
		{ echo "SKIPPED: govulncheck is not here and cannot be fetched"; exit 0; }; \
	log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	for arch in amd64 arm64; do \
		code=0; GOOS=linux GOARCH=$$arch CGO_ENABLED=0 timeout 280 $$tool -db '$(VULNDB)' ./cmd/waypoint >$$log 2>&1 || code=$$?; \
		if [ $$code -eq 124 ]; then echo "SKIPPED: no end in 280 s, mostly for want of an answer of $(VULNDB)"; exit 0; fi; \
		if [ $$code -ne 0 ] && grep -q '^govulncheck: fetching vulnerabilities: ' $$log; then \
			echo "SKIPPED: $$(sed -n 's/^govulncheck: //p' $$log)"; exit 0; fi; \
		sed "s/^/$$arch: /" $$log; [ $$code -eq 0 ] || exit $$code; \
	done

# The pages of the commands, made of the command line and of man/prose.
man:
	$(GO) test ./cmd/waypoint -count=1 -run '^TestManual(Messages)?$$' -update

example:
	@echo "== contrib/example"
	@cd contrib/example && $(GO) vet ./... && $(GO) test ./...

bench:
	$(GO) test -run '^$$' -bench . -benchtime 1s -timeout 20m ./...
	$(GO) run ./contrib/bench

# Every fuzz target in turn, DURATION for each: a time, or as many inputs as
# 1000x says. It begins with what is committed and with what FUZZED, a directory,
# has kept of runs before; make fuzz DURATION=10m FUZZED=… adds to it. No time
# goes into making small what was found, for that is not bounded by an input's.
# A target that is stopped by its time may end as "context deadline exceeded",
# which is of no input (golang/go#75804) and is left out; what fails has one.
# Coverage guides it, for which all is compiled anew and what is there run through
# first: a smoke of seconds is better off with BLIND=1.
fuzz:
	@set -e -o pipefail; dir=$$(mktemp -d); trap 'rm -rf $$dir' EXIT; found='$(FUZZED)'; found=$${found:-$$dir/found}; \
	for package in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		$(GO) test -c $(if $(BLIND),,-fuzz Fuzz) -o $$dir/test $$package; \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$package/*_test.go | sort); do \
			echo "== $$target in $$package, $(DURATION)"; \
			(cd $$package && $$dir/test -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(DURATION) -test.fuzzminimizetime 1x \
				-test.fuzzcachedir "$$found/$$package" -test.timeout 0) >$$dir/log 2>&1 && code=0 || code=$$?; \
			if [ $$code -ne 0 ] && ! grep -q 'Failing input' $$dir/log && grep -qx ' *context deadline exceeded' $$dir/log; then code=0; fi; \
			if [ $$code -ne 0 ]; then cat $$dir/log; exit 1; fi; \
			grep '^fuzz: elapsed' $$dir/log | tail -n 1; \
		done; \
	done

# The packages on booted systems (packaging/lab), as root: an old version and a
# newer one of this tree. The tests see no more of this machine than they need,
# and nothing of theirs is left when they are stopped. RUN chooses some of them;
# with LONG=1 the power is cut and the clock is set many times (half an hour).
test-system:
	@set -e; for v in old=0.0.1 new=0.0.2; do dir=dist/lab/$${v%=*}; \
		rm -rf $$dir; echo "== packages $${v#*=}"; \
		ARCHS=$$($(GO) env GOHOSTARCH) DIST=$$dir VERSION=$${v#*=} packaging/build.sh >/dev/null; \
		echo $${v#*=} >$$dir/version; \
	done
	LAB_PACKAGES=$(CURDIR)/dist/lab LAB_LONG=$(LONG) unshare --mount --pid --fork --kill-child --mount-proc sh -c '"$$@"; exit $$?' sh \
		$(GO) test -count=1 -timeout $(if $(LONG),90m,20m) -parallel 4 -run '$(RUN)' ./packaging/lab

# For so long in all: a quarter of it seeds of the simulation, half rounds of
# faults under running jobs, a quarter the history that clients are told, by a
# program with the race detector.
# The rest of the suite is part of make test. make torture DURATION=10m
torture:
	@set -e; all=$$(( $$(echo $(DURATION) | sed 's/h/*3600+/; s/m/*60+/; s/s/+/; s/$$/0/') )); \
	echo "== simulation"; SIM_DURATION=$$((all / 4))s $(GO) test -count=1 -timeout 0 -v -run '^TestSimulation$$' ./daemon; \
	echo "== rounds"; TORTURE_DURATION=$$((all / 2))s $(GO) test -count=1 -timeout 0 -v -run '^TestRounds$$' ./contrib/torture; \
	echo "== history"; TORTURE_RACE=1 TORTURE_DURATION=$$((all / 4))s $(GO) test -count=1 -timeout 0 -v -run '^TestHistory$$' ./contrib/torture

# deb and rpm for amd64 and arm64 in dist/: make packages VERSION=1.2.3
packages:
	@VERSION=$(VERSION) packaging/build.sh

# The files only; contrib/install.sh by itself sets up this host as well.
install: build
	contrib/install.sh --prefix '$(PREFIX)' --destdir '$(DESTDIR)'

clean:
	rm -rf bin dist
