import os
import subprocess
import sys

import pytest

from aqr_model.data.files import whole_folder, write_whole


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.pkl"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.pkl"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "scene"
    with whole_folder(path) as partial:
        (partial / "x").write_text("old")

    def fail():
        with whole_folder(path) as partial:
            (partial / "y").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in path.iterdir()] == ["x"]
    assert os.listdir(tmp_path) == ["scene"]


def test_a_new_folder_replaces_the_old_one(tmp_path):
    path = tmp_path / "scene"
    for name in ("x", "y"):
        with whole_folder(path) as partial:
            (partial / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["y"]
    assert os.listdir(tmp_path) == ["scene"]


def test_a_killed_process_leaves_no_folder_under_the_final_name(tmp_path):
    path = tmp_path / "scene"
    script = (
        "import importlib.util, os, pathlib, signal\n"
        "spec = importlib.util.spec_from_file_location('files', 'aqr_model/data/files.py')\n"
        "files = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(files)\n"
        f"with files.whole_folder(pathlib.Path({str(path)!r})) as partial:\n"
        "    (partial / 'x').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == 1  # the partial folder, hidden
    with whole_folder(path) as partial:
        (partial / "y").write_text("whole")
    assert os.listdir(tmp_path) == ["scene"]
