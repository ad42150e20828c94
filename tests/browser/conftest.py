"""The system's Chromium without a window, and pages that must stay silent and local."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from t3d.cli.main import main
from tests.serve.conftest import Server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which `make test-browser` installs")
    with sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as whom containers run.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page on which nothing is reported as an error, and which asks no other host."""
    made = browser.new_page(**getattr(request, "param", {}))
    told: list[str] = []
    hosts: set[str | None] = set()

    def hear(message: ConsoleMessage) -> None:
        # The browser itself notes each refusal of the server, which the page tells in its words.
        if "/v1/" not in message.location["url"]:
            told.append(message.text)

    made.on("console", hear)
    made.on("pageerror", lambda error: told.append(str(error)))
    made.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname))
    yield made
    made.close()
    assert told == []
    assert hosts <= {None, "127.0.0.1"}


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six problems of the shipped model at full steps and at one step a block."""
    path = tmp_path_factory.mktemp("evaluations") / "evaluation"
    settings = (
        "[{denoising_steps: 4, max_new_tokens: 96}, {denoising_steps: 1, max_new_tokens: 96}]"
    )
    command = ["eval", "--model", "mini_teacher", "--num_problems", "6", "--output", str(path)]
    assert main([*command, "--settings", settings, "--progress", "false"]) == 0
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `t3d serve` with the shipped model."""
    serving = Server(tmp_path_factory.mktemp("server"), "mini_teacher")
    yield serving.url
    assert serving.stop() == 0
