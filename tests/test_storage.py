"""Files written whole or not at all: drafts that were left, drafts that are being written, and one writer at a time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afmol.errors import ConfigError
from afmol.files import locked, storage, write_file
from strategies import one_sentence


@pytest.fixture(autouse=True)
def _another_process():
    """Each test sweeps as if it were a process of its own."""
    storage.sweep.cache_clear()


def test_what_a_killed_process_left_is_swept(tmp_path):
    code = (
        "import os, signal, sys\nfrom afmol.files import storage\n"
        "storage.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_file(sys.argv[1], b'half')"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], check=False)
    assert run.returncode == -signal.SIGKILL
    (draft,) = tmp_path.iterdir()
    assert storage.DRAFT.fullmatch(draft.name)
    write_file(tmp_path / "b.json", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_name_as_long_as_may_be_has_a_draft(tmp_path):
    name = "é" * 125 + ".json"
    write_file(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_somebody_writes_just_now_is_left_alone(tmp_path):
    draft = storage.draft_of(tmp_path / "a.json")
    with storage._held(draft) as file:
        file.write(b"ha")
        write_file(tmp_path / "b.json", b"whole")
        os.replace(draft, tmp_path / "a.json")
        file.write(b"lf")
    assert (tmp_path / "a.json").read_bytes() == b"half"


def test_another_machines_drafts_are_left_for_a_day(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_machine", lambda: "zzzz".replace("z", "f"))
        young, old = (storage.draft_of(tmp_path / name) for name in ("young", "old"))
    others = [tmp_path / name for name in (".a.tmp", ".b.0123456789abc.tmp", "c.0123456789ab.tmp", ".d.0123456789ab")]
    long_ago = time.time() - 2 * storage.FORGOTTEN
    for path in (young, old, *others):
        path.write_bytes(b"")
        if path != young:
            os.utime(path, (long_ago, long_ago))
    folder = storage.draft_of(tmp_path / "stack.gsf")
    folder.mkdir()
    write_file(tmp_path / "e", b"")
    assert {*tmp_path.iterdir()} == {young, *others, folder, tmp_path / "e"}


def test_one_command_at_a_time(tmp_path):
    lock = tmp_path / "lock"
    with locked(lock, "the set"):
        with (
            pytest.raises(ConfigError, match="Another command is writing the set just now") as error,
            locked(lock, "the set"),
        ):
            raise AssertionError
        one_sentence(error, "the set")
    assert not lock.exists()
    with locked(lock, "the set"):
        pass
    with pytest.raises(ConfigError, match="cannot be written") as error, locked(tmp_path / "none" / "lock", "it"):
        raise AssertionError
    one_sentence(error, tmp_path / "none" / "lock")


HOLD = """
import os, sys, time
from afmol.files import locked
there, here = os.pipe()
with locked(sys.argv[1], "it"):
    if os.fork() == 0:  # as a worker is started, that lives on for a while
        os.write(here, b"!")
        time.sleep(5)
        os._exit(0)
    os.read(there, 1)
    print("held", flush=True)
    time.sleep(60)
"""


def test_kill_9_frees_the_lock_though_a_child_lives_on(tmp_path):
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        assert run.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="Another command"), locked(lock, "it"):
            raise AssertionError
        run.kill()
        run.wait()
        with locked(lock, "it"):
            pass
    assert not Path(lock).exists()
