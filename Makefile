# The tasks of a developer. `make` prints them.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
ONLY    ?=
# Runs, not seconds: at the end of a time go test now and then reports the deadline itself as a failure.
FUZZ    ?= 30000x

# Where an ordinary user's PATH lacks them: nft, ip.
export PATH := $(PATH):/usr/sbin:/sbin

# Programs that the tests and races run as peers and referees, files that they need
# besides, and the Debian packages all these are in.
TOOLS    = ip ss nft nc ncat socat openssl curl gcc taskset setpriv unshare mount script nmap strace python3 lsof netstat \
           haproxy nginx iperf3 redis-server redis-cli redis-benchmark named dig
FILES    = /etc/services /usr/lib/nginx/modules/ngx_stream_module.so \
           /usr/lib/postgresql/*/bin/initdb /usr/lib/postgresql/*/bin/postgres /usr/lib/postgresql/*/bin/psql /usr/lib/postgresql/*/bin/pgbench
PACKAGES = iproute2 nftables netcat-openbsd ncat socat openssl curl gcc libc6-dev util-linux mount bsdutils netbase nmap strace python3 lsof net-tools \
           haproxy nginx libnginx-mod-stream iperf3 redis-server redis-tools postgresql bind9 bind9-dnsutils

help: ## print this
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-9s %s\n", $$1, $$2}'

run: build ## run the network application until Ctrl-C: TCP echo 8080, UDP echo 8081
	./ft serve

build: ## build ./ft
	CGO_ENABLED=0 $(GO) build -o ft ./cmd/ft

install: ## install ft in $(DESTDIR)$(PREFIX)/bin
	@test -x ft || $(MAKE) build
	install -D -m 0755 ft $(DESTDIR)$(PREFIX)/bin/ft

test: tools lint unit load fuzz cross race-check ## everything that must pass: lint, tests, fuzzing, cross builds

tools: ## install the Debian packages that the tests need, or say which
	@missing=""; for t in $(TOOLS); do command -v $$t >/dev/null || missing="$$missing $$t"; done; \
	for f in $(FILES); do test -e "$$f" || missing="$$missing $$f"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null || exit 1; \
	    if [ -d /run/systemd/system ]; then echo "Debian has started servers that no test uses: systemctl disable --now haproxy nginx redis-server postgresql named"; fi; \
	  else \
	    echo "the tests need$$missing: sudo apt-get install $(PACKAGES)" >&2; exit 1; \
	  fi; \
	fi

lint: ## gofmt, go vet, staticcheck
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "gofmt -w:" $$files >&2; exit 1; fi
	$(GO) vet ./... && cd race && $(GO) vet ./...
	$(GO) tool staticcheck ./...

unit: ## the tests with the race detector: units, command scripts, lab hosts, floors
	$(GO) test -race ./...

load: ## the tests whose load or timing the race detector would distort, without it
	$(GO) test -count=1 -run 'TenThousand|Exhaustion' ./stream
	$(GO) test -count=1 -run 'Kill|100ms' ./history ./daemon ./port/lease

fuzz: ## each fuzz target FUZZ=30000x times, or for a time: FUZZ=1m
	@set -e; for d in $$($(GO) list -f '{{.Dir}}' ./...); do \
	  for f in $$(grep -hos '^func Fuzz[A-Za-z0-9_]*' $$d/*_test.go | cut -c6-); do \
	    echo "fuzz $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZ) $$d >.fuzz.out 2>&1 || { cat .fuzz.out; rm -f .fuzz.out; exit 1; }; \
	  done; \
	done; rm -f .fuzz.out

cross: ## build for other systems
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/ft
	CGO_ENABLED=0 GOOS=windows GOARCH=amd64 $(GO) build -o /dev/null ./cmd/ft
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/ft
	GOOS=darwin $(GO) vet ./... && GOOS=windows $(GO) vet ./...

race: build ## measure against the known tools, side by side; ONLY=forward runs one
	cd race && $(GO) run . -ft ../ft $(ONLY)

race-check: build # each race once: do ft and the known tools find the same?
	cd race && $(GO) run . -ft ../ft -short -rounds 1 >/dev/null && $(GO) run . -ft ../ft -short -rounds 1 forward >/dev/null

cover: ## test coverage, as coverage.html
	$(GO) test -coverprofile=coverage.out ./...
	$(GO) tool cover -html=coverage.out -o coverage.html
	@$(GO) tool cover -func=coverage.out | tail -1

.PHONY: help run build install test tools lint unit load fuzz cross race race-check cover
