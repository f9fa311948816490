"""A file of the state is written whole or not at all, and an error says which file and how much room there is."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from vaultllm import files


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "replace"])
def test_an_error_names_the_file_and_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "current"
    files.write_whole(path, "before")
    real = getattr(os, call)

    def full(*given: Any, **options: Any) -> Any:
        if call == "close":
            real(*given, **options)  # the descriptor is gone, whatever close says
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"[\d,]+ bytes free, 5 needed") as caught:
        files.write_whole(path, "after", lasting=True)
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["current"]


def test_an_error_stays_of_its_class_and_only_a_full_disk_counts_bytes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "no" / "file"))) as caught:
        files.write_whole(tmp_path / "no" / "file", "x")
    assert "free" not in str(caught.value)
