"""Settings and workspace: every mistake names the file, the line and the way out."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from vaultllm import config
from vaultllm.errors import ConfigError, VaultError, nearest


def write(vault: Path, body: str) -> Path:
    (vault / ".vaultllm").mkdir(parents=True, exist_ok=True)
    path = vault / config.CONFIG
    path.write_text(body, encoding="utf-8")
    return path


def test_init_writes_a_config_once_and_never_changes_it(tmp_path: Path) -> None:
    vault = tmp_path / "мой vault"
    vault.mkdir()
    first = config.init_workspace(vault, str(tmp_path / "state"), 'C:\\models\\"q"')
    path = vault / config.CONFIG
    before = path.read_bytes()
    again = config.init_workspace(vault, str(tmp_path / "state"), "other")
    assert path.read_bytes() == before
    assert again.settings == first.settings
    assert first.settings.train.base == 'C:\\models\\"q"'
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_the_vault_is_found_from_a_folder_within_it(tmp_path: Path) -> None:
    write(tmp_path, 'vault_id = "v"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert config.find_vault(None, inner) == tmp_path.resolve()


@pytest.mark.parametrize(
    ("body", "line", "part"),
    [
        ('vault_id = "v"\n[train]\nrnak = 8\n', 3, "Did you mean 'rank'"),
        ('vault_id = "v"\n\n[trian]\nrank = 8\n', 3, "Did you mean 'train'"),
        ('vault_id = "v"\n[train]\nminutes = -1\n', 3, "greater than 0"),
        ('vault_id = "v"\n[train]\nrank = "a"\n', 3, "integer"),
        ('vault_id = "v"\n[scan]\nme = ["x"]\nencoding = "cp12511"\n', 4, "no text encoding 'cp12511'. Did you mean 'cp1251'"),
        ('vault_id = "v"\nscan.encoding = "hex"\n', 2, "no text encoding 'hex'"),
        ('vault_id = "v"\nscan.encoding = "unicode_escape"\n', 2, "no text encoding"),
        ('vault_id = "v"\n[memory]\nembedder = "s:e5"\n', 3, "memory.embedder: 's:e5' is no embedder; write vault, st:PATH_OR_ID"),
        ('vault_id = "v"\n[memory]\nembedder = "openai:localhost#e5"\n', 3, "write it like openai:http://"),
        ('vault_id = "v"\n[memory]\nprecision = "int4"\n', 3, "'float32' or 'int8'"),
        ('vault_id = "v"\nvault_id\n', 2, "is not TOML"),
        ("", None, "vault_id"),
    ],
)
def test_a_wrong_setting_names_its_line_and_the_nearest_right_name(tmp_path: Path, body: str, line: int | None, part: str) -> None:
    path = write(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        config.load_settings(path)
    assert caught.value.line == line
    assert part in caught.value.message
    assert str(path) in str(caught.value)


def test_a_missing_vault_a_file_and_an_uninitialised_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="does not exist"):
        config.open_workspace(str(tmp_path / "nowhere"))
    (tmp_path / "f").write_text("x")
    with pytest.raises(VaultError, match="is a file"):
        config.open_workspace(str(tmp_path / "f"))
    with pytest.raises(VaultError, match="vaultllm init"):
        config.open_workspace(str(tmp_path))


def test_the_state_may_not_lie_in_the_vault_nor_belong_to_another(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, 'vault_id = "one"\n')
    write(two, 'vault_id = "two"\n')
    with pytest.raises(VaultError, match="inside the vault"):
        config.open_workspace(str(one), str(one / "state"))
    with pytest.raises(VaultError, match="inside the state"):
        config.open_workspace(str(one), str(tmp_path))
    config.open_workspace(str(one), str(tmp_path / "state"))
    with pytest.raises(VaultError, match="another vault"):
        config.open_workspace(str(two), str(tmp_path / "state"))


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_or_a_kill_leaves_no_state_that_seems_to_be_of_another_vault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    vault, state = tmp_path / "vault", tmp_path / "state"
    vault.mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(VaultError, match="bytes free"):
        config.init_workspace(vault, str(state))
    assert not (vault / config.CONFIG).exists()
    monkeypatch.undo()
    config.init_workspace(vault, str(state))
    (state / "vault_id").unlink()
    monkeypatch.setattr(os, call, full)
    with pytest.raises(VaultError, match="bytes free"):
        config.open_workspace(str(vault), str(state))
    monkeypatch.undo()
    assert config.open_workspace(str(vault), str(state)).state == state


def test_every_setting_is_documented_with_its_default() -> None:
    documented = (Path(__file__).resolve().parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    for name, field in config.Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, config._Section):
            for key in section.model_fields:
                default = section.model_fields[key].default
                shown = json.dumps(list(default) if isinstance(default, tuple) else default, ensure_ascii=False)
                assert f"| `{name}.{section.model_fields[key].alias or key}` | `{shown}` | " in documented
        else:
            assert f"`{name}`" in documented


def test_the_nearest_name_is_offered_only_when_it_is_near() -> None:
    assert nearest("rnak", ["rank", "alpha"]) == " Did you mean 'rank'?"
    assert nearest("zzz", ["rank", "alpha"]) == " Known: alpha, rank."
