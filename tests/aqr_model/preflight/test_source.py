"""Where the keys of a config stand, and which names served to write it."""

from pathlib import Path

from own_config import write_config

from aqr_model.preflight.dotted import walk
from aqr_model.preflight.reading import load_config
from aqr_model.preflight.source import Places, helper_names

OWN = """\
lr = 1e-4
steps = [dict(type="Load"),
         dict(type="Flip", sides=dict(x=1))]
more = [*steps,
        dict(type="Pad")] + [
    dict(type="Collect")]
common = dict(depth=50)
model = dict(
    backbone=dict(**common,
                  style="pytorch"),
    neck={"out": 4,
          "dotted.name": 5})
data = dict(train=dict(pipeline=more))
steps = []
"""


def lines(text: str, keys: list[str], folder: Path) -> dict[str, int]:
    path = folder / "own.py"
    path.write_text(text)
    found = {key: Places(path).of(key) for key in keys}
    assert all(place.startswith(f"{path}, line ") for place in found.values())
    return {key: int(place.rpartition(" ")[2]) for key, place in found.items()}


def test_a_key_stands_where_its_value_is_written(tmp_path):
    expected = {
        "lr": 1,
        "model.backbone.style": 10,
        "model.backbone.depth": 7,  # through `**common`
        "model.neck.dotted.name": 12,
        "data.train.pipeline": 13,
        "data.train.pipeline.0.type": 2,  # through `more` and `*steps`, as it was then
        "data.train.pipeline.1.sides.x": 3,
        "data.train.pipeline.2.type": 5,
        "data.train.pipeline.3": 6,
    }
    assert lines(OWN, list(expected), tmp_path) == expected


def test_a_key_that_is_not_there_stands_with_the_nearest_dict_around_it(tmp_path):
    expected = {"model.neck.missing.deeper": 11, "model.nothing": 8}
    assert lines(OWN, list(expected), tmp_path) == expected


def test_the_file_that_has_the_last_word_is_named(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(a=1,\n  b=dict(c=2,\n d=3))\n")
    own = tmp_path / "own.py"
    own.write_text("_base_ = './base.py'\nmodel = dict(\n    b=dict(c=4))\n")
    places = Places(own)
    assert places.of("model.b.c") == f"{own}, line 3"
    assert places.of("model.b.d") == f"{tmp_path / 'base.py'}, line 3"
    assert places.of("nowhere") == ""
    assert Places(None).of("model") == ""


def test_every_key_of_the_shipped_configs_has_a_place():
    for path in Path("aqr_model/configs").glob("*.py"):
        places = Places(path)
        for keys, _ in walk(dict(load_config(path).items())):
            assert places.of(".".join(keys)), keys


def test_paths_are_shown_as_one_would_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Places(write_config(tmp_path, "seed = 1\n")).of("seed") == "own.py, line 2"


def test_names_serve_the_file_that_assigns_them(tmp_path):
    base = tmp_path / "base.py"
    base.write_text("root = 'a/'\nsize = 3\nidle = 1\ndata = dict(root=root, size=size)\n")
    own = tmp_path / "own.py"
    own.write_text("_base_ = ['./base.py']\nroot = 'b/'\nsize = 4\nmodel = dict(size=size)\n")
    assert helper_names(base) == {"root", "size"}
    assert helper_names(own) == {"size"}


def test_a_dumped_config_tells_nothing_of_names(tmp_path):
    path = tmp_path / "dumped.py"
    path.write_text("root = 'a/'\ndata = dict(root='a/')\n")
    assert helper_names(path) is None
    assert helper_names(None) is None
