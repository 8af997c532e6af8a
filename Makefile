# make demo and make test need a Debian machine with Go, git and root; they
# install what is missing (a Docker Engine, a registry) and use no other registry
# than their own on loopback.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The time of the commit, so that the same source gives the same bytes.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
DATE    ?= $(shell date -u -d '@$(SOURCE_DATE_EPOCH)' +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

GOLANGCI_LINT_VERSION = v2.15.0
GOLANGCI_LINT         = .tools/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# What makes packages, and where they go.
NFPM      = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
CYCLONEDX = github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
DIST     ?= bin/dist
# Who answers for the packages: whoever gives them to others puts a name and an address here. There
# is no address by default, for none would be answered.
MAINTAINER ?= The Deckhand developers
ARCHES   ?= amd64 arm64

# Servers that tests of storage talk to, by program: module and version.
VERSITYGW = github.com/versity/versitygw/cmd/versitygw@v1.8.0
FAKE_GCS  = github.com/fsouza/fake-gcs-server@v1.56.1
AZURITE   = azurite@3.37.0

# Azure's client, whose models an example of docs/engines is held against.
AZURE_BATCH = @azure/batch@10.2.0

# Two packages at a time: tests wait for Docker more than they compute.
TESTFLAGS ?= -count=1 -p 2 -timeout 60m
BENCH     ?= .

# Power cuts of test-power.
CUTS ?= 10

# New inputs for each fuzz target.
FUZZ ?= 2000

.PHONY: build test test-crash test-power fuzz lint bench demo package dist image deps packages rig-down clean

build: ## the static program, bin/deckhand
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/deckhand ./cmd/deckhand

test: deps build ## every test, the whole-system ones included
	go vet ./...
	go test $(TESTFLAGS) ./...

# All pairs of kills of short tasks and some of the others; every point on real engines.
CRASH_PLAN ?= {"Points":-1,"ShortPairs":-1,"Pairs":6,"RealPairs":50,"Everywhere":true}

test-crash: deps ## the proof by crash injection in full: hours
	CRASH_PLAN='$(CRASH_PLAN)' go test -count=1 -v -timeout 12h ./test/crash/...

test-power: deps ## cuts the power of whole nodes, CUTS times; fails where no virtual machine can run
	CI=true DECKHAND_POWER_CUTS=$(CUTS) go test -count=1 -v -timeout 3h -run '^TestPowerCuts$$' ./test/power

fuzz: packages ## new inputs for every fuzz target, FUZZ of them
	test/fuzz.sh $(FUZZ)

lint: $(GOLANGCI_LINT) ## the analysers and the direction of imports, see .golangci.yml
	$(GOLANGCI_LINT) run

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/.tools/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv .tools/bin/golangci-lint $@

bench: deps ## benchmarks, each beside its peer
	test/deps.sh bench
	go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 30m ./...

demo: build ## one real job on a real engine, told step by step
	test/deps.sh demo
	go run ./test/demo

dist: .tools/bin/nfpm .tools/bin/cyclonedx-gomod ## packages, programs, bills of materials and checksums, in DIST
	CGO_ENABLED=0 VERSION='$(VERSION)' LDFLAGS='$(LDFLAGS)' SOURCE_DATE_EPOCH='$(SOURCE_DATE_EPOCH)' MAINTAINER='$(MAINTAINER)' internal/packaging/package.sh $(DIST) $(ARCHES)

package: dist

image: dist ## the container image deckhand:VERSION, of this machine's architecture
	docker build -q -f internal/packaging/Dockerfile -t deckhand:$(VERSION) $(DIST)/image/$$(go env GOHOSTARCH)

deps: packages .tools/bin/versitygw .tools/bin/fake-gcs-server .tools/bin/nfpm .tools/bin/cyclonedx-gomod .tools/azurite/installed .tools/azure-batch/installed ## what the tests need of the machine

packages: ## what the tests need of Debian
	test/deps.sh

# Built again when a version changes, which is when this file does.
.tools/bin/versitygw: Makefile
	GOBIN=$(CURDIR)/.tools/bin go install $(VERSITYGW)
	touch $@

.tools/bin/fake-gcs-server: Makefile
	GOBIN=$(CURDIR)/.tools/bin go install $(FAKE_GCS)
	touch $@

.tools/bin/nfpm: Makefile
	GOBIN=$(CURDIR)/.tools/bin go install $(NFPM)
	touch $@

.tools/bin/cyclonedx-gomod: Makefile
	GOBIN=$(CURDIR)/.tools/bin go install $(CYCLONEDX)
	touch $@

.tools/azurite/installed: Makefile | packages # which has npm
	npm install --no-audit --no-fund --no-package-lock --prefix $(@D) $(AZURITE)
	touch $@

.tools/azure-batch/installed: Makefile | packages
	npm install --no-audit --no-fund --no-package-lock --prefix $(@D) $(AZURE_BATCH)
	touch $@

rig-down: ## stop the private Docker Engine of the tests and delete its data
	go run ./test/rig/down

clean: rig-down
	rm -rf bin .tools
