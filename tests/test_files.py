"""Files are there whole, or as they were before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from molnets.files import write_json, write_whole


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"

    def break_off(unfinished: Path) -> None:
        unfinished.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, break_off)
    assert not path.exists()
    write_whole(path, lambda unfinished: unfinished.write_text("first"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, break_off)
    assert path.read_text() == "first"
    write_whole(path, lambda unfinished: unfinished.write_text("second"))
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]  # nothing unfinished is left


def test_values_that_are_no_json_leave_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json({"ä": 1.5}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert json.loads(path.read_text()) == {"ä": 1.5}
