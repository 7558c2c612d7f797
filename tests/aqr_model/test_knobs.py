"""Knobs against the parts that they set."""

import pytest

from aqr_model.aqr import AqrSemantics, AQRWeightGenerator, FeatureModulator, WeightRenderer
from aqr_model.aqr.semantics import CHOICES, PRESETS
from aqr_model.knobs import KNOBS

HEAD = "model.pts_bbox_head."
PARTS = {"renderer_config": WeightRenderer, "modulator_config": FeatureModulator}


def test_there_is_a_knob_for_every_field_of_the_semantics():
    assert KNOBS["semantics"].choices == PRESETS
    for field, choices in CHOICES.items():
        knob = KNOBS[f"semantics_{field}"]
        assert knob.keys == (f"{HEAD}aqr_config.semantics.{field}",)
        assert knob.choices == choices
        assert knob.default == getattr(AqrSemantics(), field)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        (knob, value)
        for knob in KNOBS.values()
        for value in dict.fromkeys((knob.default, *(knob.choices or ()), knob.low, knob.high))
        if value is not None
        if any(key.startswith(HEAD) and key.split(".")[2] in PARTS for key in knob.keys)
    ],
    ids=lambda part: getattr(part, "name", str(part)),
)
def test_every_value_of_a_knob_is_one_that_its_part_takes(knob, value):
    (key,) = knob.keys
    section, name = key.split(".")[2:]
    method = {"bilinear_radius": "bilinear", "distance_decay": "distance_weighted"}.get(name)
    more = {"render_method": method} if method else {}
    part = PARTS[section](**{name: value}, **more)
    if name.endswith("_schedule"):
        assert getattr(part, name).value == value
    elif name not in ("activation", "learnable_modulation"):
        assert getattr(part, name) == value
    assert PARTS[section](**{name: knob.default}, **more)


def test_windows_are_knobs_of_one_edge_each():
    for place, name in enumerate(("camera_window", "bev_window")):
        knob = KNOBS[name]
        assert knob.keys == (f"{HEAD}aqr_config.window_sizes.{place}",)
        for edge in knob.choices:
            sizes = [3, 3]
            sizes[place] = edge
            assert getattr(AQRWeightGenerator(embed_dims=8, window_sizes=sizes), name) == edge
