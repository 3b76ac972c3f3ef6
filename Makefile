# SPDX-License-Identifier: Apache-2.0

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory

# What the binary says of itself. The date is the commit's, so that one commit builds one binary.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATE ?= $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

# Narrow what a target works on: make race PKG=./turn BENCH=Policy FUZZTIME=1m
PKG ?= ./...
BENCH ?= .
FUZZTIME ?= 10s

# How long allocations come and go in the long run of the TURN server: make soak SOAK=60s
SOAK ?= 1h

# When the tests of a package are given up: a busy machine may take longer than Go's ten
# minutes for what a fast one does in one.
LATE := -timeout 20m

TOOL := go tool -modfile=internal/tools/go.mod
# npm writes this file last: it is there and new when the modules are. It is install
# and not ci, because some registries lack optional packages of other platforms, which ci
# insists on; the lock file pins versions all the same.
MODULES := node_modules/.package-lock.json

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: web ## build bin/meshgate with the web console inside
	go build -ldflags '$(LDFLAGS)' -o bin/meshgate ./cmd/meshgate

.PHONY: run
run: build ## build everything and start a demo mesh
	bin/meshgate demo

.PHONY: web
web: $(MODULES) ## build the client library and the web console
	npm run build --workspaces --if-present

$(MODULES): package.json package-lock.json $(wildcard web/*/package.json)
	npm install --no-save

.PHONY: test
test: setup build ## set up what tests need and run all of them
	go vet ./...
	go test -race $(LATE) ./...
	go test -race $(LATE) -count=1 -tags e2e ./internal/e2e/... ./internal/chaos/... ./internal/netlab/...
	npm test --workspaces --if-present
	npm run test:browser

.PHONY: setup
setup: ## install the programs that tests run
	scripts/setup.sh

.PHONY: race
race: ## run the Go tests of PKG with the race detector
	go test -race $(LATE) $(PKG)

.PHONY: e2e
e2e: ## run the whole-system tests
	go test -race $(LATE) -count=1 -tags e2e ./internal/e2e/... ./internal/chaos/... ./internal/netlab/...

.PHONY: soak
soak: ## run the whole-system tests that take minutes, and the TURN server for SOAK
	go test -timeout 60m -count=1 -tags "e2e soak" -run "Many|Long" -v ./internal/e2e/...
	go test -count=1 -v -run Model ./turn/core -rapid.checks=12000 -rapid.steps=100
	go run ./internal/bench-turn -soak $(SOAK)

.PHONY: chaos
chaos: ## show that the state survives 300 faults, for 20 minutes
	go run ./internal/chaos

.PHONY: web-test
web-test: build ## run the TypeScript tests, in Node and in Chromium
	npm test --workspaces --if-present
	npm run test:browser

.PHONY: bench
bench: build ## measure the whole product beside a raw data channel
	go run ./internal/bench

.PHONY: bench-control
bench-control: ## measure the control plane, its writes beside an embedded etcd
	go run ./internal/bench-control

.PHONY: bench-data
bench-data: ## measure the data plane beside plain wireguard-go; needs root
	go run ./internal/bench-data

.PHONY: bench-turn
bench-turn: ## measure the TURN server beside coturn and pion; needs root
	go run ./internal/bench-turn

.PHONY: microbench
microbench: ## run the benchmarks of PKG that match BENCH
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)

.PHONY: fuzz
fuzz: ## run each fuzz target of PKG for FUZZTIME
	scripts/fuzz.sh '$(FUZZTIME)' $(PKG)

.PHONY: lint
lint: $(MODULES) ## check format, vet, staticcheck and biome; warnings are errors
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [[ -n $$unformatted ]]; then echo "not formatted (make fmt):" $$unformatted; exit 1; fi
	go vet -tags e2e ./...
	$(TOOL) staticcheck -tags e2e ./...
	go -C internal/bench-control/etcd vet ./...
	npx biome check --error-on-warnings .
	npm run lint --workspaces --if-present

.PHONY: fmt
fmt: $(MODULES) ## format all code
	git ls-files -co --exclude-standard '*.go' | xargs gofmt -w
	npx biome check --write .

.PHONY: generate
generate: $(MODULES) ## write generated files anew
	npx buf generate proto --template proto/buf.gen.yaml
	scripts/generate-xdp.sh
	go test -count=1 ./cmd/meshgate -run ConfigDoc -update

.PHONY: check-generate
check-generate: ## fail when generated files are not what generate writes
	scripts/check-generate.sh

.PHONY: check
check: test lint check-generate ## all that a change must pass

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist coverage node_modules web/*/node_modules web/sdk/dist
	find web/console/dist -mindepth 1 ! -name .keep -delete
