# make search   run the report's search on the embedded jets
# make lab      open JupyterLab on the notebooks
# make test     run all checks
# make docs     build the guide and the API reference into site/
# make lowest   run the fast tests with the oldest versions that pyproject.toml allows
# make faults   kill searches at every moment, and see that nothing is lost: SEED
# make mutants  see whether tests notice small changes to the code: SAMPLE, SEED, PACKAGES
# make fuzz     give labkit thousands of bad inputs: CASES, SEED
# make audit    ask for known vulnerabilities of the pinned versions; needs a network
# make lock     pin the newest versions that pyproject.toml allows

PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
EXTRAS = lab,cluster,test,dev,jets
SAMPLE ?= 60
CASES ?= 12000
SEED ?= 0

.PHONY: search lab test docs lowest mutants faults fuzz audit lock

search: .venv/installed
	.venv/bin/labkit search configs/jsc_toy.toml

# In a container, root is often the only user; on loopback, with its token, that is no worse.
lab: .venv/installed
	.venv/bin/jupyter lab --notebook-dir=notebooks --ServerApp.ip=127.0.0.1 --allow-root

test: .venv/installed-for-tests docs
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/pytest

docs: .venv/installed-for-tests
	.venv/bin/mkdocs build --strict --quiet

mutants: .venv/installed-for-tests
	.venv/bin/python tools/mutants.py --sample $(SAMPLE) --seed $(SEED) $(PACKAGES)

faults: .venv/installed-for-tests
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.faults.hunt $(SEED)

# A change of what is installed makes the environment anew: nothing old is left behind.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "labkit needs Python 3.11 or newer"'
	$(PYTHON) -m venv --clear .venv
	$(PIP) --editable '.[lab]'
	touch $@

.venv/installed-for-tests: .venv/installed
	$(PIP) --editable '.[$(EXTRAS)]'
	@command -v chromium google-chrome >/dev/null || apt-get install --yes --quiet chromium \
		|| echo "Install Chromium to run the tests that need a browser; they are skipped now."
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || apt-get install --yes --quiet postgresql \
		|| echo "Install PostgreSQL to run the tests of several drivers; they are skipped now."
	touch $@

# torch apart: of the versions that are allowed, the one that the others are tested with.
lowest: .venv/installed-for-tests
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --no-deps "$$(grep ^torch== constraints.txt)"
	.venv/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct \
		--editable '.[lab,cluster,test]'
	.venv-lowest/bin/python -m pytest -o addopts="--strict-markers -ra" -m 'not slow' tests

fuzz: .venv/installed-for-tests
	.venv/bin/python -m tests.fuzz --cases $(CASES) $(if $(filter command,$(origin SEED)),--seed $(SEED))

audit: .venv/installed-for-tests
	.venv/bin/uv tool run pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch==2.13.0' '.[$(EXTRAS)]'
	.venv-lock/bin/python -m pip freeze --exclude labkit | sed 's/+cpu$$//' > constraints.txt
	.venv-lock/bin/python tools/conda_environment.py > environment.yml
	.venv-lock/bin/python tools/licences.py > docs/licences.md
	rm -rf .venv-lock
