"""What the documents name is there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.processes import ROOT

TRUST = (ROOT / "docs" / "trust.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)::(test_\w+)`", TRUST)))


def test_attacks_are_named() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize(("file", "test"), NAMED, ids="::".join)
def test_each_test_that_docs_trust_names_is_there(file: str, test: str) -> None:
    source = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    assert test in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
