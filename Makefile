# make demo and make test need a Debian machine with Go, git and root; they
# install what is missing (a Docker Engine, a registry) and use no other registry
# than their own on loopback.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The date of the commit, so that the same source gives the same binary.
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

GOLANGCI_LINT_VERSION = v2.15.0
GOLANGCI_LINT         = .tools/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# Two packages at a time: tests wait for Docker more than they compute.
TESTFLAGS ?= -count=1 -p 2 -timeout 20m
BENCH     ?= .

.PHONY: build test lint bench demo deps rig-down clean

build: ## the static program, bin/deckhand
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/deckhand ./cmd/deckhand

test: deps build ## every test, the whole-system ones included
	go vet ./...
	go test $(TESTFLAGS) ./...

lint: $(GOLANGCI_LINT) ## the analysers and the direction of imports, see .golangci.yml
	$(GOLANGCI_LINT) run

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/.tools/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv .tools/bin/golangci-lint $@

bench: deps ## benchmarks, each beside its peer
	go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 30m ./...

demo: deps build ## one real job on a real engine, told step by step
	go run ./test/demo

deps: ## what the tests and the demo need of the machine
	test/deps.sh

rig-down: ## stop the private Docker Engine of the tests and delete its data
	go run ./test/rig/down

clean: rig-down
	rm -rf bin .tools
