"""Config files: what is read, what is refused, and what the message says."""

import gc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config

import aqr_model  # noqa: F401  (registers)
from aqr_model.preflight.reading import (
    ConfigError,
    apply_overrides,
    doubled_assignments,
    load_config,
)

USERS = Path("tests/data/users")
SHIPPED = sorted(Path("aqr_model/configs").glob("*.py"))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_read_as_mmcv_reads_them(path):
    assert load_config(path)._cfg_dict == Config.fromfile(str(path))._cfg_dict


def test_a_doubled_assignment_names_lines_and_what_is_lost(tmp_path):
    path = write(
        tmp_path,
        "own.py",
        "lr = 1\n"
        "model = dict(\n    type='A', backbone=dict(frozen_stages=4, depth=50), neck={'n': 2})\n"
        "data = dict()\n"
        "model = dict(type='A', backbone=dict(depth=101))\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path} assigns `model` twice, in lines 2 and 5; the second replaces the first whole. "
        "Join both into one assignment, or delete one.\n"
        "  lost with the first:\n"
        "    model.backbone.frozen_stages = 4\n"
        "    model.neck.n = 2\n"
        "  changed:\n"
        "    model.backbone.depth = 50, then 101"
    )


def test_a_doubled_assignment_in_a_base_is_found(tmp_path):
    base = write(tmp_path, "base.py", "model = dict(a=1)\nmodel = dict(b=1)\n")
    for bases in ("'base.py'", "['./base.py']"):
        own = write(tmp_path, "own.py", f"_base_ = {bases}\nmodel = dict(c=1)\n")
        with pytest.raises(ConfigError, match=r"base\.py assigns `model` twice, in lines 1 and 2"):
            load_config(own)
    assert doubled_assignments(own) == ()
    assert [found.name for found in doubled_assignments(base)] == ["model"]


def test_all_doubled_assignments_are_reported_at_once(tmp_path):
    write(tmp_path, "base.py", "data: dict = dict(a=1)\ndata = dict(a=1)\n")
    own = write(tmp_path, "own.py", "_base_ = 'base.py'\nx = 1\nx = 2\nx = 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(own)
    text = str(caught.value)
    assert "`data` twice, in lines 1 and 2" in text
    assert "`x` twice, in lines 2 and 3" in text
    assert "`x` twice, in lines 3 and 4" in text


@pytest.mark.parametrize(
    "text",
    [
        "steps = [1]\nsteps = steps + [2]\n",
        "steps = [1]\nsteps += [2]\n",
        "size = 1\na = dict(size=size)\nsize = 2\n",
        "model = dict(a=1)\nmodel['b'] = 2\nmodel = dict(**model, c=3)\n",
        "model = dict(a=1)\nmodel.update(b=2)\n",
        "model = dict(a=1)\ndata = dict(a=1)\n",
    ],
)
def test_values_that_are_read_in_between_are_no_mistake(tmp_path, text):
    path = write(tmp_path, "own.py", text)
    assert doubled_assignments(path) == ()
    assert load_config(path)._cfg_dict == Config.fromfile(str(path))._cfg_dict


NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = st.integers(0, 2)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)


def leaves(tree, key):
    if not isinstance(tree, dict) or not tree:
        yield key, tree
        return
    for name, inner in tree.items():
        yield from leaves(inner, f"{key}.{name}")


@given(first=TREES, second=TREES)
def test_what_is_lost_is_what_the_values_say(tmp_path_factory, first, second):
    path = write(tmp_path_factory.mktemp("c"), "own.py", f"m = {first}\nm = {second}\n")
    (found,) = doubled_assignments(path)
    before, after = dict(leaves(first, "m")), dict(leaves(second, "m"))
    assert (found.first, found.second) == (1, 2)
    assert found.lost == tuple(f"{k} = {v}" for k, v in before.items() if k not in after)
    assert found.changed == tuple(
        f"{k} = {v}, then {after[k]}" for k, v in before.items() if k in after and after[k] != v
    )


def test_other_formats_are_left_to_mmcv(tmp_path):
    path = write(tmp_path, "own.yaml", "model: {a: 1}\n")
    assert load_config(path).model.a == 1
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.py")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # mmcv's file
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = dict(\n", "raises SyntaxError: '(' was never closed (own.py, line 1)"),
        ("model = dict(a=b)\n", "raises NameError: name 'b' is not defined"),
        (
            "custom_imports = dict(imports=['no_such_plugin'], allow_failed_imports=False)\n",
            "`custom_imports` fail with ModuleNotFoundError: No module named 'no_such_plugin'",
        ),
        ("raise SystemError\n", "it raises SystemError"),
    ],
)
def test_a_config_that_fails_is_said_in_a_sentence(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "own.py", text))
    assert str(caught.value).startswith(f"{tmp_path}/own.py must be a config that loads, but it")
    assert said in str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # mmcv leaves a file open, which would be noticed in another test


def test_a_base_that_an_expression_names_is_left_to_mmcv(tmp_path):
    write(tmp_path, "base.py", "a = 1\n")
    own = write(tmp_path, "own.py", "name = 'base'\n_base_ = './' + name + '.py'\nb = 2\n")
    assert (load_config(own).a, load_config(own).b) == (1, 2)


def test_overrides_reach_plain_values_in_lists():
    cfg = Config({"a": {"sizes": [9, 5], "pair": (1, 2), "parts": [{"n": 1}, {"n": [3, 4]}]}})
    overrides = {
        "a.sizes.0": 7,
        "a.pair.1": None,
        "a.parts.0.n": 5,
        "a.parts.1.n.1": 6,
        "a.parts.0": {"m": 8},
        "a.new.deep": [1],
        "b": {"c": 1},
    }
    apply_overrides(cfg, overrides)
    assert cfg._cfg_dict.to_dict() == {
        "a": {
            "sizes": [7, 5],
            "pair": (1, None),
            "parts": [{"n": 5, "m": 8}, {"n": [3, 6]}],
            "new": {"deep": [1]},
        },
        "b": {"c": 1},
    }
    assert isinstance(cfg.a.pair, tuple)


def test_overrides_past_the_end_of_a_list_are_refused():
    with pytest.raises(KeyError, match=r"`a` has 2 entries, but the key is a\.2"):
        apply_overrides(Config({"a": [1, 2]}), {"a.2": 3})
    with pytest.raises(TypeError):
        apply_overrides(Config({"seed": 1}), {"seed.deeper": {"x": 1}})


@given(
    st.dictionaries(
        st.sampled_from(["a.b", "a.c.d", "x", "y.0.z", "y.1"]),
        st.one_of(st.integers(), st.dictionaries(NAMES, LEAVES, max_size=2)),
        max_size=3,
    )
)
def test_overrides_of_dicts_are_those_of_mmcv(overrides):
    if not isinstance(overrides.get("y.1", {}), dict):
        del overrides["y.1"]
    base = {"a": {"b": {"k": 1}, "c": {}}, "y": [{"z": {"q": 1}}, {"w": 2}]}
    ours, theirs = Config(base), Config(base)
    try:
        for key, value in overrides.items():
            theirs.merge_from_dict({key: value})
    except (TypeError, KeyError) as error:
        with pytest.raises(type(error)):
            apply_overrides(ours, overrides)
        return
    apply_overrides(ours, overrides)
    assert ours._cfg_dict == theirs._cfg_dict
