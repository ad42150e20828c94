"""The headers of the playground's page."""

from __future__ import annotations

import base64
import hashlib

from t3d.serve.app import page_headers


def test_a_page_may_run_its_own_scripts_and_styles_alone() -> None:
    script, style = "let a = '<b>';\n", "p { color: red }"
    page = f"<html><style>{style}</style><script type=module>{script}</script></html>"
    policy = page_headers(page)["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert "http" not in policy
