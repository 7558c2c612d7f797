import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqr_model.data.synthetic import (
    DatasetConflictError,
    SyntheticConfig,
    read_manifest,
    write_dataset,
    writer,
)
from aqr_model.data.synthetic.__main__ import app
from aqr_model.data.synthetic.manifest import FORMAT_VERSION, MANIFEST_NAME

TINY = SyntheticConfig(
    train_scenes=2, val_scenes=2, keyframes=2, image_size=(80, 45), azimuths=60, seed=3
)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("writer") / "tiny"
    write_dataset(root, TINY)
    return root


def test_the_same_settings_give_the_same_bytes(written, tmp_path):
    write_dataset(tmp_path / "again", TINY)
    assert digests(tmp_path / "again") == digests(written)


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_the_number_of_workers(written, tmp_path, workers):
    write_dataset(tmp_path / "parallel", TINY, workers=workers)
    assert digests(tmp_path / "parallel") == digests(written)


def test_another_seed_gives_another_world(written, tmp_path):
    write_dataset(tmp_path / "other", replace(TINY, seed=4))
    ours, others = digests(written), digests(tmp_path / "other")
    common = set(ours) & set(others)
    assert {name for name in common if ours[name] == others[name]} <= {
        "maps/stub.png",
        "v1.0-synth/visibility.json",
    }


def test_validation_scenes_do_not_depend_on_the_number_of_training_scenes(written, tmp_path):
    write_dataset(tmp_path / "fewer", replace(TINY, train_scenes=1))

    def clouds(root: Path) -> list[bytes]:
        return [p.read_bytes() for p in sorted(root.glob("samples/LIDAR_TOP/*val*"))]

    assert clouds(written) == clouds(tmp_path / "fewer")


def test_manifest_tells_settings_and_counts(written):
    manifest = read_manifest(written)
    assert manifest is not None
    assert manifest.settings["seed"] == 3
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.counts["scene"] == 4
    assert manifest.counts["sample"] == 8
    assert manifest.counts["sample_data"] == 8 * (6 + 1 + 1)
    sizes = [p.stat().st_size for p in written.rglob("*") if p.is_file()]
    assert manifest.num_bytes == sum(sizes) - (written / MANIFEST_NAME).stat().st_size
    assert manifest.differences(TINY) == []


def test_a_second_call_does_nothing(written, monkeypatch):
    monkeypatch.setattr(writer, "record_scene", None)
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert write_dataset(written, TINY) == read_manifest(written)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_other_settings_are_an_error_that_names_them(written):
    with pytest.raises(DatasetConflictError, match=r"seed is 3, wanted 4; .*--overwrite") as error:
        write_dataset(written, replace(TINY, seed=4, azimuths=61))
    assert "azimuths is 60, wanted 61" in str(error.value)


def test_another_format_version_is_an_error(written, tmp_path):
    root = tmp_path / "old"
    root.mkdir()
    content = json.loads((written / MANIFEST_NAME).read_text())
    (root / MANIFEST_NAME).write_text(json.dumps(content | {"format_version": 0}))
    with pytest.raises(DatasetConflictError, match="format version is 0"):
        write_dataset(root, TINY)


def test_overwrite_replaces_everything(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, TINY)
    (root / "nuscenes_infos_synth_train.pkl").write_bytes(b"from the old tables")
    other = replace(TINY, seed=4)
    manifest = write_dataset(root, other, overwrite=True)
    assert manifest.differences(other) == []
    assert not (root / "nuscenes_infos_synth_train.pkl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(tmp_path, overwrite):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DatasetConflictError, match="holds other files"):
        write_dataset(tmp_path, TINY, overwrite=overwrite)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    one = replace(TINY, train_scenes=1, val_scenes=0)
    assert write_dataset(tmp_path / "empty", one).counts["scene"] == 1
    assert write_dataset(tmp_path / "a" / "b", one).counts["scene"] == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(writer, "record_scene", _fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "data", TINY, workers=workers)
    assert list(tmp_path.iterdir()) == []


def _fail(job):
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "lunar"}, "domain must be one of base, shifted, but got 'lunar'"),
        ({"keyframes": 1}, "keyframes >= 2"),
        ({"train_scenes": 0, "val_scenes": 0}, "at least one scene"),
        ({"val_scenes": -1}, "scenes >= 0"),
        ({"seed": -1}, "seed >= 0"),
        ({"image_size": (8, 225)}, "image_size"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
        ({"azimuths": 4}, "azimuths >= 8"),
        ({"sweep_offsets_s": (0.5,)}, "sweep_offsets_s"),
        ({"sweep_offsets_s": (0.1, 0.1)}, "sweep_offsets_s"),
        ({"radius_m": 5.0}, "radius_m >= 10"),
        ({"density": -0.1}, "density >= 0"),
    ],
)
def test_invalid_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="workers >= 1"):
        write_dataset(tmp_path / "data", TINY, workers=0)


def command(root: Path, *more: str):
    sizes = "--train-scenes 1 --val-scenes 1 --keyframes 2 --image-size 80 45 --azimuths 60"
    return CliRunner().invoke(app, ["--root", str(root), *sizes.split(), *more])


def test_command_line(tmp_path):
    root = tmp_path / "data"
    first = command(root, "--domain", "shifted", "--sweep-offset", "0.2", "--sweep-offset", "0.4")
    assert first.exit_code == 0, first.output
    assert "2 scenes, 4 keyframes" in first.output
    manifest = read_manifest(root)
    assert manifest is not None
    assert manifest.settings["domain"] == "shifted"
    assert manifest.settings["sweep_offsets_s"] == [0.2, 0.4]
    conflict = command(root, "--domain", "base")
    assert conflict.exit_code == 2
    assert "domain is shifted, wanted base" in conflict.output
    bare = command(tmp_path / "bare", "--no-sweeps")
    assert bare.exit_code == 0, bare.output
    assert not list((tmp_path / "bare" / "sweeps" / "LIDAR_TOP").iterdir())


def test_command_line_rejects_bad_settings(tmp_path):
    result = command(tmp_path / "data", "--domain", "lunar")
    assert result.exit_code == 2
    assert "must be one of base, shifted" in result.output
