from pathlib import Path

import pytest

from launch.workplace import WorkplaceError, here


def test_on_a_laptop_both_places_are_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = here({})
    assert (place.code, place.root) == (tmp_path, tmp_path)


def test_in_a_job_code_is_found_where_it_was_uploaded_and_the_rest_below_the_root(
    tmp_path, monkeypatch
):
    upload, root = tmp_path / "upload", tmp_path / "shared"
    for folder in (upload, root):
        folder.mkdir()
        (folder / "both.py").touch()
    (root / "mine.py").touch()
    monkeypatch.chdir(upload)
    place = here({"AQR_ROOT": str(root)})
    assert place.find(Path("both.py")) == upload / "both.py"
    assert place.find(Path("mine.py")) == root / "mine.py"
    assert place.find(root / "both.py") == root / "both.py"
    place.enter()
    assert Path.cwd() == root


def test_a_root_that_the_node_does_not_have_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkplaceError, match="does not exist on this node"):
        here({"AQR_ROOT": str(tmp_path / "gone")})
