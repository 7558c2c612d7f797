from dataclasses import fields

import pytest

from aqr_model.aqr import AqrSemantics
from aqr_model.aqr.semantics import CHOICES


def test_right_is_the_default_and_legacy_its_opposite_but_for_the_clamp():
    assert AqrSemantics() == AqrSemantics.preset("right")
    legacy = AqrSemantics.preset("legacy")
    for field in fields(AqrSemantics):
        right, other = CHOICES[field.name]
        assert getattr(AqrSemantics(), field.name) == right
        assert getattr(legacy, field.name) == (right if field.name == "clamped" else other)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("preset", ["right", "legacy"])
def test_every_field_is_set_alone(name, preset):
    for value in CHOICES[name]:
        made = AqrSemantics.from_config({"preset": preset, name: value})
        assert getattr(made, name) == value
        others = {field: None for field in CHOICES if field != name}
        assert AqrSemantics.preset(preset, **others | {name: value}) == made
        base = AqrSemantics.preset(preset)
        assert all(getattr(made, field) == getattr(base, field) for field in others)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (None, AqrSemantics()),
        ("right", AqrSemantics()),
        ("legacy", AqrSemantics.preset("legacy")),
        ({}, AqrSemantics()),
        ({"preset": None, "views": None}, AqrSemantics()),
        ({"queries": "all"}, AqrSemantics(queries="all")),
        ({"preset": "legacy", "clamped": "bev"}, AqrSemantics.preset("legacy", clamped="bev")),
        (AqrSemantics(cells="floored"), AqrSemantics(cells="floored")),
    ],
)
def test_configs(config, wanted):
    assert AqrSemantics.from_config(config) == wanted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("old", "`semantics.preset` must be one of 'right', 'legacy', but got 'old'"),
        ({"preset": "wrong"}, "`semantics.preset` must be one of"),
        ({"view": "all"}, "knows the keys preset, queries, .*but got view"),
        ({"views": "every"}, "`semantics.views` must be one of 'all', 'first', but got 'every'"),
        (["legacy"], "must be a preset's name or a dict"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        AqrSemantics.from_config(config)
