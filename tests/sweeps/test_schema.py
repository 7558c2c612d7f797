import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from spec_samples import FULL

from aqr_model.knobs import KNOBS
from sweeps.schema import spec_schema

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPECS = {path.stem: path.read_text() for path in (ROOT / "sweeps/specs").glob("*.yaml")}
SPECS |= {
    f"README {i}": text
    for i, text in enumerate(re.findall(r"^```yaml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))
}
SCHEMA = spec_schema(KNOBS)
WHOLE = FULL.replace("model.head.", "model.pts_bbox_head.")


def mistakes(text: str) -> list[str]:
    data = YAML(typ="safe").load(text)
    found = Draft202012Validator(SCHEMA).iter_errors(data)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", SPECS)
def test_specs_that_load_are_valid(name: str) -> None:
    assert mistakes(SPECS[name]) == []


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("gaussian_sigma:", "gausian_sigma:", "space"),
        ("low: 0.6, high: 2.0", "low: 0.01, high: 2.0", "space.gaussian_sigma.low"),
        ("low: 0.6, high: 2.0", "low: 0.6", "space.gaussian_sigma"),
        ("[0.3, 0.5, 0.8, 1.0]", "[-1]", "space.transformer_lr_mult.choices.0"),
        ("epochs: 1", "epochs: 0", "train.epochs"),
        ("epochs: 1", "epochs: 1\n  epocs: 1", "train"),
        ("sampler: gp", "sampler: bayes", "search.sampler"),
        ("budget: {trials: 24, hours: 72}", "control: true", ""),
        (", NDS: 0.6849}", "}", "known.0"),
    ],
)
def test_mistakes_are_seen(old: str, new: str, where: str) -> None:
    assert old in WHOLE
    found = mistakes(WHOLE.replace(old, new).replace("control: true\ncontrol", "control"))
    assert mistakes(WHOLE) == []
    assert [line.split(": ")[0] for line in found][:1] == [where], found


@pytest.mark.parametrize(
    ("also", "where"),
    [
        ("[{metric: time}, {metric: AP, classes: [car, bus], mode: max, noise: 0.1}]", None),
        ("[{metric: AP}]", "objective.also.0"),
        ("[{metric: AP, classes: [pedestrain]}]", "objective.also.0.classes.0"),
        ("[{metric: AP, classes: []}]", "objective.also.0.classes"),
        ("[{metric: mAP, classes: [car]}]", "objective.also.0.classes"),
        ("[{metric: latency}]", "objective.also.0.metric"),
        ("[{metric: time}, {metric: mAP}, {metric: mATE}, {metric: mASE}]", "objective.also"),
    ],
)
def test_several_objectives_are_checked(also: str, where: str | None) -> None:
    found = mistakes(WHOLE.replace("noise: 0.002}", f"noise: 0.002, also: {also}}}"))
    assert [line.split(": ")[0] for line in found][:1] == ([where] if where else []), found


def test_every_knob_is_described_with_range_and_unit() -> None:
    described: dict[str, Any] = SCHEMA["properties"]["space"]["properties"]
    assert described.keys() == KNOBS.keys() - {"seed"}
    text = described["gaussian_sigma"]["description"]
    assert "0.1 to 8" in text
    assert "feature-map cells" in text
    assert "renderer_config.gaussian_sigma" in text
    assert described["gaussian_sigma"]["properties"]["low"] == {"minimum": 0.1, "maximum": 8.0}
    assert described["render_method"]["properties"]["fixed"]["enum"][0] == "gaussian"
