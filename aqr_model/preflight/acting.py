"""Whether two configs train the same thing: a search over what nobody heeds would chase noise.

Two detectors are compared by all that their modules hold: shapes, settings, initial values. A value
that a part takes and forgets leaves no trace there.
"""

import functools
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from mmcv import Config, ConfigDict
from mmdet3d.models import builder
from torch import Tensor, nn

from aqr_model.cmt.head import POINT_SETTINGS
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.engine.optim.param_groups import make_optimizer, matching_key
from aqr_model.preflight.building import heard
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.keys import idle
from aqr_model.preflight.model import check_model
from aqr_model.preflight.training import ENTRIES, idle_entries

Part = Mapping[str, Any]
_POINTS = ("train_cfg", "test_cfg")


def trains_alike(one: Config, other: Config) -> bool:
    """Whether a difference between two configs makes none to a training.

    Args:
        one: A config from which a training can start.
        other: Another.

    Returns:
        True only where that is certain.
    """
    names = [name for name in {*one.keys(), *other.keys()} if one.get(name) != other.get(name)]
    try:
        with heard(Findings(), ""):
            return all(_alike(one, other, name) for name in names)
    # What cannot be built is said elsewhere; here it is something else than what can.
    except Exception:  # noqa: BLE001
        return False


def idle_here(config: Config, key: str) -> str | None:
    """Why an entry of `custom_keys` changes nothing; None if it does, or for any other key."""
    entry = key.removeprefix(f"{ENTRIES}.").rpartition(".")[0]
    if not key.startswith(f"{ENTRIES}."):
        return None
    with _frozen(config) as model:
        return dict(idle_entries(model, config.optimizer)).get(entry)


def says_no_effect(config: Config, key: str) -> str | None:
    """What a part of the model says of a setting that has no effect; None if it says nothing."""
    findings, (_, part, *_), name = Findings(), key.split("."), key.rsplit(".", 1)[-1]
    if part in _parts(config.model):
        with heard(findings, "model"):
            _built(config.model, part, "meta")
    said = (note.text for note in findings.notes)
    return next((t for t in said if t.startswith(f"`{name}`") and "has no effect" in t), None)


def _heeded(config: Config, name: str) -> Any:
    """A section without what nothing reads."""
    whole = {name: deepcopy(config.get(name))}
    for path, _ in list(idle(whole)):
        node: Any = whole
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
    return whole


def _alike(one: Config, other: Config, name: str) -> bool:
    if name == "model":
        return _same_model(one.model, other.model)
    if name == "optimizer":
        return _groups(one) == _groups(other)
    return _heeded(one, name) == _heeded(other, name)


def _groups(config: Config) -> dict[str, Any]:
    """What each parameter is trained with, by name."""
    optimizer = config.optimizer
    entries = (optimizer.get("paramwise_cfg") or {}).get("custom_keys") or {}
    found: dict[str, Any] = {"type": optimizer.get("type")}
    with _frozen(config) as model:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in make_optimizer(model, optimizer).param_groups:
            settings = {key: value for key, value in group.items() if key not in ("params", "name")}
            for parameter in group["params"]:
                name = names[id(parameter)]
                key = matching_key(name, entries)
                schedule = None if key is None else entries[key].get("lr_mult_schedule")
                found[name] = (settings, schedule)
    return found


@contextmanager
def _frozen(config: Config) -> Iterator[nn.Module]:
    """The detector of a config without memory, frozen as the config says."""
    model = _detector(repr(config.model), config)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        Frozen(model, config)
        yield model
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


_DETECTORS: dict[str, nn.Module] = {}


def _detector(name: str, config: Config) -> nn.Module:
    """The detector of a config; the last one is kept, since rates leave it as it is."""
    if name not in _DETECTORS:
        model = check_model(dict(config.items()), Findings(), files=False)
        if model is None:
            raise ValueError("the model cannot be built")
        _DETECTORS.clear()
        _DETECTORS[name] = model
    return _DETECTORS[name]


def _same_model(one: Part, other: Part) -> bool:
    parts = _parts(one)
    for name in {*one, *other}:
        if one.get(name) == other.get(name):
            continue
        if name in _POINTS:
            if _read_points(one, name) != _read_points(other, name):
                return False
        elif name not in parts or name not in _parts(other) or not _same_part(one, other, name):
            return False
    return True


def _same_part(one: Part, other: Part, part: str) -> bool:
    # Shapes and settings are told without memory; values only where these agree.
    return all(
        picture(_built(one, part, device)) == picture(_built(other, part, device))
        for device in ("meta", "cpu")
    )


def _parts(own: Part) -> list[str]:
    return [name for name, part in own.items() if isinstance(part, Mapping) and "type" in part]


def _read_points(own: Part, name: str) -> Any:
    """What the head reads of `train_cfg` or `test_cfg`."""
    if name == "test_cfg" and own.get("train_cfg"):
        return None  # it stands in for the other
    settings = (own.get(name) or {}).get("pts") or {}
    return {key: settings.get(key) for key in POINT_SETTINGS}


def _built(own: Part, part: str, device: str) -> nn.Module:
    """A part of a detector with the initial values of a fixed seed."""
    config = deepcopy(own[part])
    if part == "pts_bbox_head":
        config |= {name: (own.get(name) or {}).get("pts") for name in _POINTS}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        module = builder.build_backbone(ConfigDict(config))  # one registry holds all parts
        if device == "cpu" and "retrained" not in repr(config):  # no file is read here
            module.init_weights()
    return module


def picture(value: Any) -> Any:
    """All that an object holds, as plain values that can be compared."""
    return _picture(value, [])


def _picture(value: Any, around: list[Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        return value
    if isinstance(value, Tensor):
        values = None if value.is_meta else value.detach().numpy().tobytes()
        return (tuple(value.shape), str(value.dtype), value.requires_grad, values)
    circle = next((i for i, each in enumerate(around) if each is value), None)
    if circle is not None:
        return ("circle", circle)
    return (type(value).__qualname__, tuple(_held(value, [*around, value])))


def _held(value: Any, around: list[Any]) -> Iterator[Any]:
    """What an object is made of."""
    if isinstance(value, Mapping):
        yield from ((str(key), _picture(each, around)) for key, each in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (_picture(each, around) for each in value)
    elif isinstance(value, functools.partial):
        yield from (_picture(each, around) for each in (value.func, value.args, value.keywords))
    elif isinstance(value, types.FunctionType | types.MethodType):
        yield value.__qualname__
        yield from (_picture(cell.cell_contents, around) for cell in value.__closure__ or ())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, _picture(getattr(value, f.name), around)) for f in fields(value))
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for name, each in vars(value).items():
            # The keys of hooks count all hooks of the process.
            held = list(each.values()) if name.endswith("_hooks") else each
            yield name, _picture(held, around)
    else:
        yield repr(value)
