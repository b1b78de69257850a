# make search   run the report's search on the embedded jets
# make lab      open JupyterLab on the notebooks
# make test     run all checks
# make lock     pin the newest versions that pyproject.toml allows

PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: search lab test lock

search: .venv/installed
	.venv/bin/labkit search configs/jsc_toy.toml

# In a container, root is often the only user; on loopback, with its token, that is no worse.
lab: .venv/installed
	.venv/bin/jupyter lab --notebook-dir=notebooks --ServerApp.ip=127.0.0.1 --allow-root

test: .venv/installed-for-tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/pytest

# A change of what is installed makes the environment anew: nothing old is left behind.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "labkit needs Python 3.11 or newer"'
	$(PYTHON) -m venv --clear .venv
	$(PIP) --editable .
	touch $@

.venv/installed-for-tests: .venv/installed
	$(PIP) --editable '.[test,jets]'
	@command -v chromium google-chrome >/dev/null || apt-get install --yes --quiet chromium \
		|| echo "Install Chromium to run the tests that need a browser; they are skipped now."
	touch $@

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch==2.13.0' '.[test,jets]'
	.venv-lock/bin/python -m pip freeze --exclude labkit | sed 's/+cpu$$//' > constraints.txt
	rm -rf .venv-lock

