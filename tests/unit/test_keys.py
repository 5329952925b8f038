"""The file of API keys, and the command that writes it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from service import keys
from service.access import MAX_KEYS, Access, KeyFile, KeyFileError, is_loopback, new_key, read_keys
from service.errors import Unauthenticated
from tests.fakes import FakeClock


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc" / "keys.json"
    monkeypatch.setenv("POMONA_API_KEYS_FILE", str(path))
    return path


def test_a_key_is_printed_once_and_its_hash_is_stored(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        keys.main(["add", "line-3", "--scope", "infer", "--scope", "admin", "--rate", "20", "--concurrency", "8"]) == 0
    )
    text = capsys.readouterr().out.strip()
    stored = file.read_text()
    assert text.startswith("pomona_")
    assert text not in stored
    assert text.rpartition("_")[2] not in stored
    assert file.stat().st_mode & 0o777 == 0o600
    (key,) = read_keys(file).keys
    assert (key.name, key.scopes, key.rate, key.concurrency) == ("line-3", ("infer", "admin"), 20.0, 8)
    caller = Access(KeyFile(file)).caller({"x-api-key": text})
    assert caller == key
    assert keys.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert listed == f"line-3  infer,admin  {key.created}  20 per second, 8 at a time\n"


def test_a_key_is_for_operations_and_unlimited_by_default(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys.main(["add", "annotator"])
    capsys.readouterr()
    keys.main(["list"])
    assert "annotator  infer  " in (shown := capsys.readouterr().out)
    assert shown.endswith("no limits\n")


def test_two_keys_have_nothing_in_common(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys.main(["add", "a"])
    keys.main(["add", "b"])
    one, other = read_keys(file).keys
    assert {one.id, one.salt, one.sha256}.isdisjoint({other.id, other.salt, other.sha256})
    shown = capsys.readouterr().out.split()
    assert len({text.rpartition("_")[2] for text in shown}) == 2
    assert all(len(text) >= 60 for text in shown)


def test_a_removed_key_is_gone_and_the_others_stay(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        keys.main(["add", name])
    assert keys.main(["remove", "a"]) == 0
    assert [key.name for key in read_keys(file).keys] == ["b"]
    assert keys.main(["remove", "a"]) == 1
    assert "no key a; there are: b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "line 3"], "name: "),
        (["add", "-"], "name: "),
        (["add", "a" * 65], "name: "),
        (["add", "line-3", "--rate", "0"], "rate: "),
        (["add", "line-3", "--rate", "nan"], "rate: "),
        (["add", "line-3", "--concurrency", "0"], "concurrency: "),
        (["list"], "cannot be read"),
        (["remove", "line-3"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(
    file: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("pomona: ")
    assert says in error
    assert error.count("\n") == 1
    assert not file.exists()


def test_a_name_is_given_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys.main(["add", "line-3"])
    assert keys.main(["add", "line-3"]) == 1
    assert "a key line-3 already" in capsys.readouterr().err
    assert len(read_keys(file).keys) == 1


def test_without_a_file_the_command_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POMONA_API_KEYS_FILE", raising=False)
    assert keys.main(["list"]) == 2
    assert "POMONA_API_KEYS_FILE" in capsys.readouterr().err


def test_the_mode_that_an_administrator_gave_the_file_is_kept(file: Path) -> None:
    keys.main(["add", "a"])
    file.chmod(0o640)
    keys.main(["add", "b"])
    assert file.stat().st_mode & 0o777 == 0o640


def test_keys_that_are_added_at_the_same_time_are_all_there(file: Path) -> None:
    threads = [threading.Thread(target=keys.main, args=(["add", f"line-{number}"],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(file).keys} == {f"line-{number}" for number in range(8)}


def a_key(**changes: Any) -> dict[str, Any]:
    key, _ = new_key("line-3", ("infer",))
    return key.model_dump(mode="json") | changes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "malformed"),
        ("[]", "malformed"),
        ('{"keys": [{}]}', r"keys\.0\."),
        (json.dumps({"keys": [a_key(scopes=[])]}), "scopes"),
        (json.dumps({"keys": [a_key(scopes=["root"])]}), "scopes"),
        (json.dumps({"keys": [a_key(rate=0)]}), "rate"),
        (json.dumps({"keys": [a_key(key="pomona_…")]}), "key"),
        (json.dumps({"keys": [a_key(), a_key()]}), "every name once"),
        (json.dumps({"keys": [a_key(), a_key(name="line-4")] * 200}), "keys"),
        (" " * (1 << 20) + "{}", "at most"),
    ],
)
def test_a_file_that_is_not_of_keys_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeyFileError, match=says):
        read_keys(path)


def test_a_file_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "keys.json", FakeClock()
    key, text = new_key("line-3", ("infer",))
    keys.add(path, key)
    access = Access(KeyFile(path, clock), clock)
    looks: list[Path] = []
    stat = Path.stat

    def counted(self: Path, **options: Any) -> Any:
        looks.append(self)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", counted)
    for _ in range(1000):
        assert access.caller({"x-api-key": text}) == key
        clock.leap(0.003)
    assert len(looks) == 2
    monkeypatch.undo()
    keys.remove(path, "line-3")
    clock.leap(1)
    with pytest.raises(Unauthenticated):
        access.caller({"x-api-key": text})


def test_what_is_kept_of_keys_is_bounded(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", FakeClock()
    path.write_text('{"keys": []}')
    access = Access(KeyFile(path, clock), clock)
    for number in range(5 * MAX_KEYS):
        key, _ = new_key(f"line-{number}", ("infer",), rate=1)
        with access.using(key, "infer"):
            pass
    assert access.counted <= 2 * MAX_KEYS


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.7.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("localhost", False)],  # noqa: S104
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
