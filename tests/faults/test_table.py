"""The table of faults: every row of it is a test."""

import re

from tests.conftest import ROOT


def test_each_row_names_a_test() -> None:
    rows = re.findall(r"^\| (?!what |:).*\|$", (ROOT / "docs" / "faults.md").read_text(), re.M)
    assert len(rows) > 20
    for row in rows:
        *_, last = (cell.strip() for cell in row.strip("|").split("|"))
        if last != "the same":
            [(path, name)] = re.findall(r"^`(tests/[a-z_/]+\.py)::(\w+)`$", last)
            assert f"def {name}(" in (ROOT / path).read_text(), row
