# Everything a user or a developer does, in one place. `make help` lists the targets.
# A fresh machine needs Rust (cargo), Python 3.11 or newer with pip and venv, and GNU make; the rest is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEELS := build/wheels
RECORDING := recordings/linux61-4level-kpti-small.npz

# What the wheel is made of: any change rebuilds it, nothing else does.
SOURCES := pyproject.toml Cargo.toml $(wildcard Cargo.lock .cargo/config.toml) README.md LICENSE-MIT LICENSE-APACHE \
	$(shell find rust -name target -prune -o -type f \( -name '*.rs' -o -name Cargo.toml \) -print) \
	$(shell find python/shadow_mmu -type f \( -name '*.py' -o -name '*.pyi' -o -name py.typed \))
RUST_SOURCES := $(filter rust/% Cargo.% .cargo/%,$(SOURCES))

# ---------------------------------------------------------------------------------------------- for users

.PHONY: demo
demo: $(VENV)/.installed ## Build and install into .venv, then print the two tables: a real guest replayed, KPTI on two vCPU threads
	$(BIN)/shadow-mmu replay $(RECORDING) --policy locked --policy seed --policy lru:3
	$(BIN)/shadow-mmu run kpti --vcpus 2 --policy locked --policy seed

.PHONY: test
test: test-rust test-python ## Run every test: cargo tests, then pytest with its doctests

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------------------------------------- for developers

.PHONY: dev
dev: $(VENV)/.maturin ## Install the package in place: Python edits work at once, Rust edits after another `make dev`
	rm -f $(VENV)/.installed $(VENV)/.dev
	VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --release --extras dev

.PHONY: test-rust
test-rust: ## Run the cargo tests of the workspace
	cargo test --workspace --quiet

.PHONY: test-python
test-python: $(VENV)/.dev build/mutants/_native.abi3.so ## Run pytest over tests/ and the examples in the docstrings
	$(BIN)/pytest
	$(BIN)/pytest --quiet --doctest-modules --pyargs shadow_mmu

.PHONY: lint
lint: fmt-check clippy ruff mypy stubtest ## Check formatting, clippy, ruff, mypy --strict and the stub of the native module

.PHONY: fmt
fmt: $(VENV)/.dev ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix-only --quiet

.PHONY: fmt-check
fmt-check:
	cargo fmt --all --check

# The core is one program in six shapes; each must be free of warnings. freethreaded.cfg describes a Python that need not be there.
.PHONY: clippy
clippy:
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	cargo clippy --package shadow-mmu --all-targets --features count-sync --quiet -- -D warnings
	cargo clippy --package shadow-mmu-py --features mutants --quiet -- -D warnings
	PYO3_CONFIG_FILE=$(abspath rust/python/freethreaded.cfg) cargo clippy --package shadow-mmu-py --quiet --target-dir target/freethreaded -- -D warnings
	cargo clippy --package shadow-mmu --package shadow-mmu-sync --all-targets --features shadow-mmu/scheduled,shadow-mmu/mutants --quiet -- -D warnings
	RUSTFLAGS="--cfg loom" cargo clippy --package shadow-mmu --package shadow-mmu-sync --lib --profile test --quiet \
		--target-dir target/loom -- -D warnings
	RUSTFLAGS="--cfg explored" cargo clippy --package shadow-mmu --package shadow-mmu-sync --lib --profile test --quiet \
		--target-dir target/explored -- -D warnings

.PHONY: ruff
ruff: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: mypy
mypy: $(VENV)/.dev
	$(BIN)/mypy python/shadow_mmu tests $(wildcard benches)

.PHONY: stubtest
stubtest: $(VENV)/.dev
	MYPYPATH=python $(BIN)/stubtest shadow_mmu._native --allowlist tests/stubtest-allowlist.txt

# Where the model checkers leave what they found, a line for each model; `make twins` makes one table of it.
MODELS := build/models

# Release, for loom explores millions of interleavings; without link-time optimisation, for it is linked often.
.PHONY: loom
loom: ## Explore the interleavings of the lock-free protocols, and see their weakened twins fail
	@mkdir -p $(MODELS) && rm -f $(MODELS)/loom.jsonl
	MODELS_OUT=$(abspath $(MODELS))/loom.jsonl \
	RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-3} \
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --package shadow-mmu --package shadow-mmu-sync --release --lib --target-dir target/loom models::

.PHONY: explore
explore: ## Explore the same protocols and their twins without a bound, with the checker of rust/sync
	@mkdir -p $(MODELS) && rm -f $(MODELS)/explored.jsonl
	MODELS_OUT=$(abspath $(MODELS))/explored.jsonl \
	RUSTFLAGS="--cfg explored" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --package shadow-mmu --package shadow-mmu-sync --release --lib --target-dir target/explored

$(MODELS)/loom.jsonl: $(RUST_SOURCES)
	@$(MAKE) --no-print-directory loom

$(MODELS)/explored.jsonl: $(RUST_SOURCES)
	@$(MAKE) --no-print-directory explore

.PHONY: twins
twins: $(MODELS)/loom.jsonl $(MODELS)/explored.jsonl $(VENV)/.dev ## Print the table of the weakened twins: which checker caught each, in which execution
	$(BIN)/python tests/twins/table.py $(MODELS)/loom.jsonl $(MODELS)/explored.jsonl

# Quick to build (profile `sanitize`), each in a folder of its own: the flags are other ones. What they show: docs/testing.md.
.PHONY: asan
asan: ## Run the Rust tests under AddressSanitizer and LeakSanitizer; planted errors must be reported
	$(PYTHON) tests/sanitizers/stage.py asan

.PHONY: tsan
tsan: ## Run the Rust tests under ThreadSanitizer; every planted weak order must be reported
	$(PYTHON) tests/sanitizers/stage.py tsan

# The same inside Python, with gcc's runtimes and the module built for them; minutes, so not a stage of the gate.
.PHONY: asan-python
asan-python: $(VENV)/.dev ## Run tests of the Python API under AddressSanitizer (needs gcc's libasan)
	$(BIN)/python -m tests.sanitizers.in_python asan

.PHONY: tsan-python
tsan-python: $(VENV)/.dev ## Run tests of the Python API under ThreadSanitizer (needs gcc's libtsan)
	$(BIN)/python -m tests.sanitizers.in_python tsan

.PHONY: count-sync
count-sync: ## Run the core's tests on the counting sync facade: what the fast path may not do, counted
	cargo test --package shadow-mmu --package shadow-mmu-sync --package shadow-mmu-sys --features shadow-mmu/count-sync --quiet

.PHONY: mutants
mutants: build/mutants/_native.abi3.so ## Build the native module with single rules that can be switched off (for tests/mutants)

# Where a run leaves its figures; benches/table.py makes one table of them. A failed bench leaves a void row, and fails the run.
BENCH := build/bench

.PHONY: bench
bench: $(VENV)/.dev ## Run the benchmarks and print one table of them all; method in docs/performance.md
	rm -rf $(BENCH)
	mkdir -p $(BENCH)
	$(PIP) install unicorn || echo 'unicorn cannot be had: its columns say skip'
	status=0; \
	BENCH_OUT=$(abspath $(BENCH)) CRITERION_HOME=$(abspath $(BENCH))/criterion \
		cargo bench --quiet --no-fail-fast --package shadow-mmu --bench contention --bench switch --bench walk --bench fault || status=1; \
	BENCH_WHEELS=$(abspath $(WHEELS)) $(BIN)/pytest benches --quiet --benchmark-enable --benchmark-only --benchmark-json $(BENCH)/python.json || status=1; \
	$(BIN)/python benches/table.py $(BENCH) || status=1; \
	exit $$status

.PHONY: bench-docs
bench-docs: $(VENV)/.dev ## Put the figures of the last `make bench` into README.md and docs/performance.md, between their marks
	$(BIN)/python -m benches.publish $(BENCH) README.md docs/performance.md

.PHONY: contend
contend: $(VENV)/.dev ## Workloads over policies, locks and vCPUs: print the table and draw docs/contention.svg
	$(BIN)/shadow-mmu contend --plot docs/contention.svg

# Two vCPUs have a core each; eight share two, so that a lock's owner may be off its core: its holds are not judged here.
STRESS := $(BIN)/shadow-mmu stress --save build/stress --policy locked --policy seed --policy lru:3
EVERY_LOCK := --lock queued --lock ticket --lock ttas --lock mutex --lock rwlock

.PHONY: stress
stress: $(VENV)/.dev ## Let 2 and 8 vCPUs do everything at once under every policy and kind of lock, each access judged: 20 seconds
	$(STRESS) $(EVERY_LOCK) --vcpus 2 --seconds 0.65 --audit-every 2000
	$(STRESS) $(EVERY_LOCK) --vcpus 8 --seconds 0.65 --audit-every 2000 --no-lock-times

.PHONY: schedules
schedules: ## The stress under a deterministic scheduler: seeds hold, mutants are caught, failing schedules fail again
	cargo test --package shadow-mmu-sync --features scheduled --quiet --lib schedule
	SCHEDULES_SECONDS=$${SCHEDULES_SECONDS:-20} cargo test --package shadow-mmu --test schedules --test self_check --features scheduled,mutants --quiet

.PHONY: stress-long
stress-long: $(VENV)/.dev ## The same for ten minutes with 2 vCPUs and ten minutes with 8
	$(STRESS) --vcpus 2 --seconds 200 --model
	$(STRESS) --vcpus 8 --seconds 200 --model

.PHONY: soak
soak: $(VENV)/.dev ## Run the long tests: ten million operations on the core, a million on core and model, dumps, matrices, unicorn
	cargo test --release --package shadow-mmu --test self_check --quiet -- --include-ignored --nocapture
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest tests -m soak --timeout 0

# Hours: what is left when every day's run is green.
.PHONY: soak-model
soak-model: $(VENV)/.dev ## Go deeper with both model checkers: more vCPUs in P11, more preemptions in loom, litmus programs by chance
	@mkdir -p $(MODELS)
	$(BIN)/python -m tests.litmus.checker_programs $${PROGRAMS:-20000} >$(MODELS)/programs.jsonl
	LITMUS_PROGRAMS=$(abspath $(MODELS))/programs.jsonl \
	RUSTFLAGS="--cfg explored" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --package shadow-mmu --package shadow-mmu-sync --release --lib --target-dir target/explored -- --include-ignored --nocapture
	RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-4} \
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --package shadow-mmu --package shadow-mmu-sync --release --lib --target-dir target/loom \
			models:: -- --include-ignored --nocapture

.PHONY: docs
docs: ## Build the API documentation of the Rust crates; warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

.PHONY: wheel
wheel: $(WHEELS)/.built ## Build the release wheel into build/wheels

# The wheel above is for the stable ABI, which a free-threaded interpreter does not have: PyO3 leaves the feature out for it.
.PHONY: wheel-freethreaded
wheel-freethreaded: | $(VENV)/.maturin ## Build a wheel for a free-threaded Python into build/wheels-freethreaded: PYTHON=python3.14t
	$(BIN)/maturin build --release --quiet --interpreter $(PYTHON) --out $(WHEELS)-freethreaded

.PHONY: clean
clean: ## Remove everything that was built, .venv too
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks python/shadow_mmu/_native*.so
	cargo clean --quiet

# ---------------------------------------------------------------------------------------------- stamps

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

$(VENV)/.maturin:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'maturin>=1.9,<2'
	touch $@

$(WHEELS)/.built: $(SOURCES) | $(VENV)/.maturin
	mkdir -p $(WHEELS)
	rm -f $(WHEELS)/*.whl
	$(BIN)/maturin build --release --quiet --out $(WHEELS)
	touch $@

# The version stays the same between builds, so pip is told to take the new wheel; its dependencies are left in peace.
$(VENV)/.installed: $(WHEELS)/.built
	$(PIP) install $(WHEELS)/*.whl
	$(PIP) install --force-reinstall --no-deps $(WHEELS)/*.whl
	touch $@

$(VENV)/.dev: $(VENV)/.installed pyproject.toml
	$(PIP) install "$$(echo $(WHEELS)/*.whl)[dev]"
	touch $@

build/mutants/_native.abi3.so: $(RUST_SOURCES)
	cargo build --release --quiet --package shadow-mmu-py --features mutants --target-dir build/mutants-target
	mkdir -p build/mutants
	cp build/mutants-target/release/lib_native.so $@
