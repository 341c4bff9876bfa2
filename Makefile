# What there is to do with this project; `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BED := tests/testbed
# Where the machines of the demo's pool come from: static (hosts) or aws (a stand-in for EC2 and Auto Scaling).
PROVIDER ?= static
of_provider = $(if $(filter aws,$(PROVIDER)),cloud)
say = @printf '\n\033[1m--- %s\033[0m\n' '$(1)'

.PHONY: help demo up down test lint generate bench soak image packages tools cloud supervisor operator

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

demo: packages tools $(of_provider) supervisor operator ## Show the main job on a local cluster (or on KUBECONFIG's), then clean up; PROVIDER=aws: on instances that come and go
	@target/debug/examples/testbed demo $(PROVIDER)

up: packages tools $(of_provider) supervisor operator ## Leave the demo's bed running and print where everything is (PROVIDER=aws too)
	@env -u KUBECONFIG target/debug/examples/testbed up $(PROVIDER)

down: ## End what `make up` started
	@test ! -x target/debug/examples/testbed || target/debug/examples/testbed down

test: ## Install what the tests need and run them all
	$(call say,packages)
	@$(BED)/install-packages.sh pod
	$(call say,control plane and kubelet (built once, minutes; then cached))
	@$(BED)/build-tools.sh all >/dev/null
	$(call say,cloud stand-in (made once; then cached))
	@$(BED)/build-cloud.sh >/dev/null
	$(call say,the test suite)
	@$(BED)/run-tests.sh

lint: ## Check formatting, lints, generated files and dependencies
	$(call say,rustfmt)
	@cargo fmt --check
	$(call say,clippy: operator and tests)
	@cargo clippy --locked --all-targets -- -D warnings
	$(call say,clippy: supervisor)
	@cargo clippy --locked --no-default-features --features supervisor --lib --bin dormouse-supervisor -- -D warnings
	$(call say,shell scripts)
	@for script in $$(git ls-files '*.sh' .ci/run); do bash -n "$$script"; done
	$(call say,Python)
	@git ls-files -z '*.py' | xargs -0 python3 -c 'import ast, sys; [ast.parse(open(name).read(), name) for name in sys.argv[1:]]'
	$(call say,dependencies)
	@if command -v cargo-deny >/dev/null; then cargo deny --all-features check bans licenses sources; \
	else echo 'not checked: cargo-deny is missing (cargo install cargo-deny --locked)'; fi

generate: ## Write the files that come from the types: definitions, API reference
	@cargo run --quiet --locked --bin dormouse -- crds --output crds
	@cp crds/*.yaml charts/dormouse/files/crds/
	@cargo run --quiet --locked --bin dormouse -- api-reference > docs/api-reference.md
	@git status --short crds charts/dormouse/files/crds docs/api-reference.md

bench: packages tools cloud ## Measure every budget and write target/bench.json
	@$(BED)/run-bench.sh

soak: packages tools cloud supervisor ## Run the random and repeated tests at their full length (DORMOUSE_SOAK_KILLS, DORMOUSE_SOAK_CLOUD_KILLS, DORMOUSE_SEED)
	@PROPTEST_CASES=20000 cargo test --locked --lib
	@PROPTEST_CASES=20000 cargo test --locked --no-default-features --features supervisor --lib
	@for round in $$(seq 1 10); do echo "--- round $$round of 10"; cargo test --locked --test dormouse -- main_job; done
	@DORMOUSE_OUTAGE_SECONDS=300 cargo test --locked --test dormouse -- conversation::outage
	@cargo test --locked --test dormouse -- --ignored --exact --nocapture chaos::soak
	@cargo test --locked --test dormouse -- --ignored --exact --nocapture chaos::cloud::soak
	@tests/conformance/run-faults.sh

image: ## Build the container image and write it as an OCI archive to target/dormouse-image.tar
	@$(BED)/build-image.sh --rootfs target/image --archive target/dormouse-image.tar --name dormouse:$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
	@ls -l target/dormouse-image.tar

packages:
	$(call say,packages)
	@$(BED)/install-packages.sh

tools:
	$(call say,control plane (built once, minutes; then cached))
	@$(BED)/build-tools.sh >/dev/null

cloud:
	$(call say,cloud stand-in (made once; then cached))
	@$(BED)/build-cloud.sh >/dev/null

supervisor:
	$(call say,supervisor)
	@CARGO_TARGET_DIR=target/supervisor $(BED)/build-supervisor.sh --test

operator:
	$(call say,operator and test bed (minutes the first time))
	@cargo build --locked --bin dormouse --example testbed
