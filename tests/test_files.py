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


@pytest.mark.parametrize("library", ["torch", "safetensors", "python"])
def test_what_libraries_say_of_a_file_that_cannot_be_written_is_an_error_of_the_disk_with_its_path(tmp_path: Path, library: str) -> None:
    resource = pytest.importorskip("resource")
    import torch
    from safetensors.torch import save_file

    path, weights = tmp_path / "weights", {"a": torch.zeros(100_000)}
    saves = {
        "torch": lambda: torch.save(weights, path),
        "safetensors": lambda: save_file(weights, path),
        "python": lambda: path.write_text("x" * 100_000),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))) as caught, files.saving(path):
            saves[library]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert caught.value.errno


def test_other_errors_of_libraries_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), files.saving("x"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_what_tokenizers_raise_on_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="uota") as told, files.saving(tmp_path / "tokenizer.json"):
        raise Exception("Disk quota exceeded (os error 122)")
    assert (told.value.errno, told.value.filename) == (122, str(tmp_path / "tokenizer.json"))
    with pytest.raises(Exception, match="another"), files.saving(tmp_path):
        raise Exception("another")


def test_an_empty_folder_gives_way_to_a_file_of_ours_and_a_full_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").mkdir()
    files.write_whole(tmp_path / "CURRENT", "gen-1\n")
    assert (tmp_path / "CURRENT").read_text() == "gen-1\n"
    (tmp_path / "kept" / "somebody's").mkdir(parents=True)
    with pytest.raises(OSError, match="kept"):
        files.write_whole(tmp_path / "kept", "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "kept"]
