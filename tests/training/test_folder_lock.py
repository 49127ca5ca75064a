"""The lock of a run's folder: between processes and threads, and after a kill."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from ghn_jax.training.folder_lock import LOCK_FILE, FolderInUseError, lock_folder

ROOT = pathlib.Path(__file__).parents[2]
HOLDS = """
import sys, time
from ghn_jax.training.folder_lock import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_until_it_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError) as caught:
            with lock_folder(tmp_path):
                pass
        message = str(caught.value)
        assert message.startswith(f"{tmp_path} is in use by process {process.pid} on ")
        assert message.endswith("): wait until it ends, or use another folder")
        # A link to the folder is the folder.
        (tmp_path.parent / "link").symlink_to(tmp_path)
        with pytest.raises(FolderInUseError):
            with lock_folder(tmp_path.parent / "link"):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
    with lock_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()


def test_the_same_thread_enters_again_and_others_do_not(tmp_path):
    errors = []

    def enter():
        try:
            with lock_folder(tmp_path):
                pass
        except FolderInUseError as error:
            errors.append(str(error))

    with lock_folder(tmp_path):
        with lock_folder(str(tmp_path)):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert errors == [
        f"{tmp_path} is in use by another thread of this process: wait until it ends, or use"
        " another folder"
    ]
    enter()  # released
    assert len(errors) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": null}', "x" * 10_000])
def test_a_file_that_says_nothing(tmp_path, text):
    import fcntl

    with (tmp_path / LOCK_FILE).open("w+") as file:
        file.write(text)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="is in use by another process: wait until"):
            with lock_folder(tmp_path):
                pass
