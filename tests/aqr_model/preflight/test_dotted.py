"""Dotted keys whose parts hold dots themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config

from aqr_model.preflight.dotted import addressed, has_key, keys_of, path_of, value_at, walk
from aqr_model.preflight.reading import apply_overrides

KEYS = "optimizer.paramwise_cfg.custom_keys"


def config(**entries):
    return {"optimizer": {"paramwise_cfg": {"custom_keys": entries}}}


DOTTED = config(**{"pts_bbox_head.transformer": {"lr_mult": 0.5}, "img_neck": {"lr_mult": 0.1}})


def test_an_entry_whose_name_holds_dots_is_found():
    key = f"{KEYS}.pts_bbox_head.transformer.lr_mult"
    *_, entry, setting = path_of(DOTTED, key)
    assert (entry, setting) == ("pts_bbox_head.transformer", "lr_mult")
    assert value_at(DOTTED, path_of(DOTTED, key)) == 0.5
    assert has_key(DOTTED, key)
    assert not has_key(DOTTED, f"{KEYS}.pts_bbox_head.lr_mult")


def test_the_longest_name_wins():
    both = config(**{"a": {"lr_mult": 1}, "a.b": {"lr_mult": 2}, "a.b.c": {"lr_mult": 3}})
    for name, value in (("a", 1), ("a.b", 2), ("a.b.c", 3)):
        assert value_at(both, path_of(both, f"{KEYS}.{name}.lr_mult")) == value


def test_an_override_changes_the_entry_that_is_there_and_makes_none():
    cfg = Config(DOTTED)
    apply_overrides(cfg, {f"{KEYS}.pts_bbox_head.transformer.lr_mult": 0.1})
    apply_overrides(cfg, {f"{KEYS}.pts_bbox_head.transformer.decay_mult": 2})  # a new setting of it
    apply_overrides(cfg, {f"{KEYS}.pts_neck.lr_mult": 0.3})  # a new entry without dots
    entries = cfg.optimizer.paramwise_cfg.custom_keys
    assert entries == {
        "pts_bbox_head.transformer": {"lr_mult": 0.1, "decay_mult": 2},
        "img_neck": {"lr_mult": 0.1},
        "pts_neck": {"lr_mult": 0.3},
    }


@pytest.mark.parametrize(
    "name", ["pts_bbox_head.task_heads", "img_neck.conv", "pts_bbox_head.transformer.decoder"]
)
def test_a_key_that_could_mean_no_entry_is_refused(name):
    cfg = Config(DOTTED)
    with pytest.raises(KeyError, match="is written as a dict") as caught:
        apply_overrides(cfg, {f"{KEYS}.{name}.lr_mult": 0.1})
    assert "lr_mult" in str(caught.value)
    assert dict(cfg.items()) == DOTTED
    assert not has_key(DOTTED, f"{KEYS}.{name}.lr_mult")


def test_a_new_entry_with_dots_is_written_as_a_dict():
    cfg = Config(DOTTED)
    apply_overrides(cfg, {KEYS: {"pts_bbox_head.task_heads": {"lr_mult": 2.0}}})
    assert cfg.optimizer.paramwise_cfg.custom_keys["pts_bbox_head.task_heads"].lr_mult == 2.0


def test_overrides_for_those_who_split_every_key_say_the_same():
    overrides = {
        "seed": 1,
        f"{KEYS}.img_neck.lr_mult": 0.2,
        f"{KEYS}.pts_bbox_head.transformer.lr_mult": 0.1,
        f"{KEYS}.pts_bbox_head.transformer.decay_mult": 3,
    }
    plain = addressed(overrides, DOTTED)
    assert plain == {
        "seed": 1,
        KEYS: {
            "img_neck": {"lr_mult": 0.2},
            "pts_bbox_head.transformer": {"lr_mult": 0.1, "decay_mult": 3},
        },
    }
    ours, theirs = Config(DOTTED), Config(DOTTED)
    apply_overrides(ours, overrides)
    theirs.merge_from_dict(plain)
    assert dict(ours.items()) == dict(theirs.items())


def test_overrides_without_dots_in_their_parts_stay_as_they_are():
    overrides = {"seed": 1, f"{KEYS}.img_neck.lr_mult": 0.2, "model": {"a": 1}}
    assert addressed(overrides, DOTTED) == overrides


NAMES = st.sampled_from(["a", "b", "a.b", "b.a.c"])
TREES = st.recursive(
    st.integers(0, 3),
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(st.dictionaries(NAMES, inner), max_size=2),
    ),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(TREES)
def test_every_key_of_a_config_leads_somewhere(tree):
    keys = ["/".join(path) for path, _ in walk(tree)]
    assert len(set(keys)) == len(keys)
    for path, _ in walk(tree):
        assert has_key(tree, ".".join(path))


def test_numbers_step_into_lists():
    tree = {"a": {"heads": [{"n": 1}, {"n": 2}], "window": (1, 2), "none": None}}
    there = ["a.heads.1.n", "a.window.0", "a.none", "a"]
    absent = ["a.heads.2.n", "a.heads.x", "a.nothing", "a.none.deeper", "a.window.2"]
    assert [has_key(tree, key) for key in there] == [True] * 4
    assert [has_key(tree, key) for key in absent] == [False] * 5
    assert "a.heads.1.n" in keys_of(tree)
    assert "a.window.0" not in keys_of(tree)
