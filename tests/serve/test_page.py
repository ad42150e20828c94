"""The playground's page as the server sends it."""

from __future__ import annotations

import urllib.request

from t3d.serve.playground import playground_page
from tests.serve.conftest import Server


def test_the_page_comes_with_its_policy(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/") as answer:
        made = playground_page()
        assert answer.read().decode() == made.html
        policy = answer.headers["Content-Security-Policy"]
    assert policy == f"{made.policy}; frame-ancestors 'none'"
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
