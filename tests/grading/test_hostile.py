"""The hostile corpus: none passes, none leaves anything, nor changes another row's verdict."""

from __future__ import annotations

import re
import socket
import tempfile
import time
from pathlib import Path

import pytest

from t3d.grading.code import Program, grade_programs
from t3d.grading.sandbox import Backend
from tests.grading.hostile.corpus import CORPUS, FORGED, HONEST, LOOPED, TESTS
from tests.grading.sandboxes import in_namespaces, reasons


def test_no_hostile_program_passes_and_none_leaves_anything(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "secret").write_text("secret")
    before = in_namespaces()
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"@SECRET@": tmp_path / "secret", "@OUTSIDE@": tmp_path / "outside"}
        places |= {"@PORT@": server.getsockname()[1]}
        programs: list[Program] = []
        for name, (_, source) in CORPUS.items():
            for place, value in places.items():
                source = source.replace(place, str(value))
            limit = 1.0 if name in ("limits_memory", "limits_memory_at_once") else 0.05
            programs.append(Program(source, TESTS, time_limit_s=limit))
        honest = [Program(HONEST, TESTS, time_limit_s=0.05)] * 10
        # Between the hostile ones, in time as in order.
        mixed = [p for i in range(10) for p in (*programs[i::10], honest[i])]
        verdicts = grade_programs(mixed, num_workers=8)
    left = in_namespaces() - before
    wrong = {}
    names = {program.program: name for name, program in zip(CORPUS, programs, strict=True)}
    for program, verdict in zip(mixed, verdicts, strict=True):
        name = names.get(program.program, "honest")
        expected = "passed" if name == "honest" else CORPUS[name][0]
        if not re.fullmatch(expected, verdict.reason) or verdict.passed != (name == "honest"):
            wrong[name] = verdict.reason
    assert not wrong
    assert len(CORPUS) >= 180
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())
    deadline = time.monotonic() + 30  # Sandboxes of other tests end; a survivor stays.
    while left & in_namespaces() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left & in_namespaces()


def test_forgers_fail_where_no_value_can_be_hidden(backend: Backend) -> None:
    kinds = tuple(f"forged_{kind}" for kind in ("equal", "told", "patched", "strings"))
    names = [name for name in FORGED if name.startswith(kinds)]
    got = reasons([HONEST, *(FORGED[name][1] for name in names)], LOOPED)
    assert got[0] == "passed"
    assert "passed" not in got[1:]
