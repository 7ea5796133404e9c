PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench power-cuts big-studies crash-loop soak dossier-damages mutations small-disk combinations fuzz lock oldest audit clean

# What runs the tool; the tests' packages, which take longer, come on top of it.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV) || { echo "Install python3-venv first: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

demo: $(VENV)/ready
	rm -rf demo
	$(BIN)/pacs-migrate demo --keep demo

# Much of a test is waiting for a peer, so that four at once suit two cores; the tests of a file share its servers.
test: $(VENV)/installed
	sh tests/install_peers.sh
	$(BIN)/ruff check migrate tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 4 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check migrate tests
	$(BIN)/mypy

bench: $(VENV)/installed
	sh tests/install_peers.sh
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python -m benchmarks.find
	$(BIN)/python -m benchmarks.receive
	$(BIN)/python -m benchmarks.upload
	$(BIN)/python -m benchmarks.job
	$(BIN)/python -m benchmarks.seal

power-cuts: $(VENV)/installed
	POWER_CUTS=$${POWER_CUTS:-50000} $(BIN)/python -m pytest -s tests/fault/test_power_cuts.py

big-studies: $(VENV)/installed
	TMPDIR=$${TMPDIR:-/tmp} HUGE_MIB=$${HUGE_MIB:-4200} MANY_IMAGES=$${MANY_IMAGES:-66000} $(BIN)/python -m pytest -s tests/fault/test_big_studies.py

dossier-damages: $(VENV)/installed
	DOSSIER_DAMAGES=$${DOSSIER_DAMAGES:-5000} $(BIN)/python -m pytest -s --timeout 0 tests/integration/test_dossier_verifier.py

mutations: $(VENV)/installed
	MUTATIONS=$${MUTATIONS:-10000} $(BIN)/python -m pytest --timeout 3600 tests/unit/test_seals.py

crash-loop: $(VENV)/installed
	CRASH_LOOP=all CRASH_SURVIVORS=512 $(BIN)/python -m pytest -s tests/fault/test_crashes.py tests/fault/test_failpoints.py tests/fault/test_failing_manifest.py

soak: $(VENV)/installed
	SOAK_MINUTES=$${SOAK_MINUTES:-60} $(BIN)/python -m tests.fault.soak

# A staging disk of 64 MiB takes an archive of 10 GB through; needs that much room for the destination.
small-disk: $(VENV)/installed
	TMPDIR=$${TMPDIR:-/tmp} SMALL_DISK_MIB=$${SMALL_DISK_MIB:-64} SMALL_DISK_ARCHIVE_MIB=$${SMALL_DISK_ARCHIVE_MIB:-10240} \
	$(BIN)/python -m pytest -s --timeout 7200 tests/integration/test_disk_full.py -k small_disk

# Misdeeds of the PACS and of the store, and SIGKILLs, drawn by lot, a migration each.
combinations: $(VENV)/installed
	COMBINATIONS=$${COMBINATIONS:-200} $(BIN)/python -m pytest -s tests/fault/test_combinations.py

# Corpora of bad PDUs and data sets, changed at random, then guided by coverage (Linux); what breaks something is kept in
# tests/fault/corpus, or lands in build/fuzz.
fuzz: $(VENV)/installed
	FUZZ=$${FUZZ:-200000} $(BIN)/python -m pytest --timeout 7200 tests/fault/test_corpus.py
	$(BIN)/pip install --quiet --disable-pip-version-check "atheris>=3.0.0"
	for kind in pdu dataset identifier toml; do $(BIN)/python -m tests.fault.fuzz $$kind -max_total_time=$${FUZZ_SECONDS:-600} || exit 1; done

# What a release installs, each file with its hash, and whether anything in it has a known weakness: --strict, for what could not be
# looked up would pass otherwise. AUDIT=osv asks another database than PyPI's.
lock: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate \
	--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

audit: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check "pip-audit>=2.9"
	$(BIN)/pip-audit --strict --vulnerability-service $${AUDIT:-pypi} --disable-pip --require-hashes --requirement requirements.lock

# The oldest versions that pyproject.toml allows: the unit tests and a demo with them.
oldest: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.9"
	rm -rf build/oldest && $(BIN)/uv venv --quiet --python $(BIN)/python build/oldest
	$(BIN)/uv pip install --quiet --python build/oldest/bin/python --resolution lowest-direct --extra test -r pyproject.toml
	build/oldest/bin/python -m pytest --timeout 600 tests/unit
	build/oldest/bin/python -m migrate demo --keep build/oldest/demo

clean:
	rm -rf $(VENV) demo build *.egg-info
