"""The lock of a run's folder: between processes and threads, and after a kill."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from ghn_jax.training import folder_lock
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


OTHERS = '"host": "h", "program": "p", "since": "s"'


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"pid": null}', "x" * 10_000, f'{{"pid": 1e999, {OTHERS}}}', "[" * 999],
)
def test_a_file_that_says_nothing(tmp_path, text):
    import fcntl

    with (tmp_path / LOCK_FILE).open("w+") as file:
        file.write(text)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="is in use by another process: wait until"):
            with lock_folder(tmp_path):
                pass


MOUNTS = """\
rootfs / ext4 rw 0 0
server:/data /mnt/my\\040data nfs4 rw 0 0
tmpfs /mnt/my\\040data/local tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/runs", "ext4"),
        ("/mnt/my data", "nfs4"),
        ("/mnt/my data/runs/1", "nfs4"),
        ("/mnt/my data/local/1", "tmpfs"),
        ("/mnt/my data2", "ext4"),
    ],
)
def test_the_file_system_of_a_path(path, kind):
    assert folder_lock._kind_of_file_system(pathlib.Path(path), MOUNTS) == kind


def test_a_network_file_system_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_lock, "_kind_of_file_system", lambda path, mounts: "nfs4")
    for name in ("a", "b"):
        with lock_folder(tmp_path / name):
            pass
    assert caplog.messages == [
        "work directories on a network file system (nfs4) are locked against a second run on this"
        " machine, and on others only if the file system passes locks on"
    ]


def test_without_locks_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with lock_folder(tmp_path):
        pass
    assert caplog.messages == [
        f"the file system of {tmp_path} has no locks (No locks available): start no second run in"
        " a folder"
    ]
