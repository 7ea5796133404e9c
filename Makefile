PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench power-cuts crash-loop soak dossier-damages mutations clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV) || { echo "Install python3-venv first: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/pacs-migrate demo --keep demo

# Much of a test is waiting for a peer, so that three at once suit two cores; the tests of a file share its servers.
test: $(VENV)/installed
	sh tests/install_peers.sh
	$(BIN)/ruff check migrate tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check migrate tests
	$(BIN)/mypy

bench: $(VENV)/installed
	sh tests/install_peers.sh
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python -m benchmarks.find
	$(BIN)/python -m benchmarks.receive
	$(BIN)/python -m benchmarks.upload
	$(BIN)/python -m benchmarks.seal

power-cuts: $(VENV)/installed
	POWER_CUTS=$${POWER_CUTS:-50000} $(BIN)/python -m pytest -s tests/fault/test_power_cuts.py

dossier-damages: $(VENV)/installed
	DOSSIER_DAMAGES=$${DOSSIER_DAMAGES:-5000} $(BIN)/python -m pytest -s --timeout 0 tests/integration/test_dossier_verifier.py

mutations: $(VENV)/installed
	MUTATIONS=$${MUTATIONS:-10000} $(BIN)/python -m pytest --timeout 3600 tests/unit/test_seals.py

crash-loop: $(VENV)/installed
	CRASH_LOOP=all CRASH_SURVIVORS=512 $(BIN)/python -m pytest -s tests/fault/test_crashes.py tests/fault/test_failpoints.py

soak: $(VENV)/installed
	SOAK_MINUTES=$${SOAK_MINUTES:-60} $(BIN)/python -m tests.fault.soak

clean:
	rm -rf $(VENV) demo build *.egg-info
