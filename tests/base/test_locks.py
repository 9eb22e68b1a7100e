"""One writer at a time: real processes that want the same folder, an owner that died, and an owner on another host."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saccade.base.locks import OWNER, lock_file, lock_folder
from saccade.errors import OutputInUse, StorageError

HOLDER = """
import sys
from pathlib import Path
from saccade.base.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
RACER = """
import sys, time
from pathlib import Path
from saccade.base.locks import lock_file
from saccade.errors import OutputInUse
path, rounds = Path(sys.argv[1]), int(sys.argv[2])
done = 0
while done < rounds:
    try:
        with lock_file(path):
            count = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(count + 1))
        done += 1
    except OutputInUse:
        time.sleep(0.001)
"""


def start_holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path):
    process = start_holder(tmp_path / "run")
    try:
        with pytest.raises(OutputInUse, match=f"process {process.pid} on "), lock_folder(tmp_path / "run"):
            pytest.fail("two processes held one folder")
    finally:
        process.communicate("\n")
    with lock_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / OWNER).read_text())["pid"] != process.pid


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    process = start_holder(tmp_path / "run")
    process.kill()
    process.communicate()
    assert (tmp_path / "run" / OWNER).exists()
    with lock_folder(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_an_owner_on_another_host_is_named_and_respected(tmp_path):
    record = tmp_path / OWNER
    record.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "2026-01-01T00:00:00"}))
    for _ in range(2):
        with pytest.raises(OutputInUse, match=r"process 7 on elsewhere[\s\S]*delete .*owner"), lock_folder(tmp_path):
            pytest.fail("the lock of another host was taken")
    record.unlink()
    with lock_folder(tmp_path):
        pass


def test_increments_under_the_lock_are_not_lost(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(path), "40"]) for _ in range(3)]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0, 0]
    assert path.read_text() == "120" and list(tmp_path.iterdir()) == [path]


def test_a_second_thread_is_refused_as_well(tmp_path):
    errors = []

    def second():
        try:
            with lock_file(tmp_path / "t.parquet"):
                pass
        except OutputInUse as error:
            errors.append(error)

    with lock_file(tmp_path / "t.parquet"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(errors) == 1


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with lock_folder(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"), lock_folder(tmp_path / "file"):
        pass
