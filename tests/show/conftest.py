"""JupyterLab, and a browser that looks at it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT
from tests.show.browser import CHROMIUM, FLAGS, shoot


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks, which it saves to."""
    tmp_path = tmp_path_factory.mktemp("lab")
    for folder in ("notebooks", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    notifications = (
        "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    )
    settings_file = tmp_path / "config" / notifications
    settings_file.parent.mkdir(parents=True)
    settings_file.write_text('{"fetchNews": "false"}')  # else a question covers the page
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    link = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [
        f"--notebook-dir={tmp_path}",
        f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1",
    ]
    command += ["--IdentityProvider.token="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    settings = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path)}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{link}/api").close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "server.log").read_text())
        yield link
    finally:
        server.terminate()
        server.wait(timeout=300)


@pytest.fixture(scope="module")  # playwright's own loop must have ended when others start one
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not cause an error in the browser's console."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(30_000)
    errors: list[str] = []
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    shoot(page, "0-last-seen")
    assert errors == []
