"""Training logs of mmcv (`.log`, `.log.json`) as typed records, under our names of metrics.

Pure: texts in, values out. The users' debug prints of AQR are read, too; each rank prints its own,
so that a step has several, which `curves` joins.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

Curves = Mapping[str, tuple[tuple[int, float], ...]]

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_TRAIN = re.compile(r"Epoch \[(\d+)\]\[(\d+)/(\d+)\]\s+(.*)")
_VAL = re.compile(r"Epoch\(val\) \[(\d+)\]\[\d+(?:/\d+)?\]\s+(.*)")
_PAIR = re.compile(rf"([\w./]+): ({_NUMBER})(?=,|\s|$)")
_ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*) = ")
_SEED = re.compile(r"Set random seed to (\d+)")
_PRINT = re.compile(r"AQR Debug Info \(Forward #(\d+)\)")
_GROUP = re.compile(r"^\s+(\w+):\s*$")
_STATISTIC = re.compile(rf"^\s+(\w+): ({_NUMBER})\s*$")
_SUMMARY = re.compile(rf"(?:^|\s)(mAP|mATE|mASE|mAOE|mAVE|mAAE|NDS): ({_NUMBER})\s*$")
_CLASS_ROW = re.compile(rf"^(\w+)\t({_NUMBER})(?:\t{_NUMBER})+\s*$")
_CLASS_AP = re.compile(r"^(\w+)_AP_dist_[\d.]+$")
_AQR_BUILT = "AQR components initialized"
_SCORES = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")

# What mmcv's own keys are called here; losses keep their names. `eta` is no measurement.
_RENAMED = {
    "time": "train/s_per_step",
    "data_time": "train/data_s_per_step",
    "memory": "train/memory_mb",
    "lr": "train/lr",
}
_NO_CURVES = ("mode", "epoch", "iter", "eta", "momentum")


class HistoryError(ValueError):
    """A file is no training log; says what it lacks."""


@dataclass(frozen=True, kw_only=True)
class AqrPrint:
    """The statistics that one rank printed in one forward.

    Attributes:
        forward: The forward's number, which is the step where nothing but training calls forward.
        values: By `aqr/<group>/<statistic>`.
    """

    forward: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores after an epoch.

    Attributes:
        epoch: Counted from 1.
        metrics: `val/nds`, `val/map`, `val/mate`, ..., `val/ap/<class>`; what is undefined for a
            class, and hence NaN in the log, is left out.
    """

    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """One training as its log tells it.

    Attributes:
        source: The file.
        config: What can be read of the config dump; empty if it is not there.
        seed: None if it is not said.
        aqr: Whether AQR took part.
        steps_per_epoch: From the log; a `.log.json` does not say it, there it is the largest
            iteration that was logged.
        curves: (step, value) of losses, gradient norm, speed, memory and AQR statistics.
        prints: Every print of AQR statistics, in the order of the log.
        evaluations: In the order of the log.
    """

    source: str
    config: Mapping[str, Any]
    seed: int | None
    aqr: bool
    steps_per_epoch: int
    curves: Curves
    prints: tuple[AqrPrint, ...] = ()
    evaluations: tuple[Evaluation, ...] = field(default=())

    @property
    def epochs(self) -> float:
        """Epochs that were meant to be trained; those that were, if the config is not there."""
        last = self.curves["train/loss"][-1][0]
        return self.config.get("total_epochs", math.ceil(last / self.steps_per_epoch))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return round(self.epochs * self.steps_per_epoch)

    @property
    def semantics(self) -> str:
        """What the maps mean: a config that does not name it belongs to the users' own code."""
        head = self.setting("model.pts_bbox_head.aqr_config.semantics")
        if isinstance(head, Mapping):
            head = head.get("preset", "right")
        return head if isinstance(head, str) else "legacy"

    @property
    def observed_clamp(self) -> float | None:
        """The bound of the BEV map that the prints show; None if they show none.

        A maximum that several forwards share to the last digit is a bound.
        """
        highest = [
            each.values["aqr/weight_map_bev_stats/max"]
            for each in self.prints
            if "aqr/weight_map_bev_stats/max" in each.values
        ]
        return highest[0] if len(highest) > 1 and len(set(highest)) == 1 else None

    def setting(self, key: str) -> Any:
        """A value of the config by its dotted key; None if it is not there."""
        node: Any = self.config
        for part in key.split("."):
            if isinstance(node, Mapping):
                node = node.get(part)
            elif isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            else:
                return None
        return node


def read_log(path: Path) -> TrainingLog:
    """Read a log file; `.json` and `.jsonl` are mmcv's records, anything else is its text.

    Raises:
        HistoryError: If it has no losses.
        OSError: If it cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    parse = parse_json if path.suffix in (".json", ".jsonl") else parse_text
    return parse(text, source=str(path))


def parse_text(text: str, *, source: str) -> TrainingLog:
    """Read what a training printed.

    Raises:
        HistoryError: If it has no losses.
    """
    # A progress bar returns the carriage; what follows it is a line of its own.
    lines = re.split(r"\r\n|\n|\r", text)
    rows = [match for line in lines if (match := _TRAIN.search(line))]
    seeds = [match for line in lines if (match := _SEED.search(line))]
    prints = tuple(_prints(lines))
    config = _config(lines)
    length = int(rows[-1][3]) if rows else 0
    reports = [
        ((int(row[1]) - 1) * int(row[3]) + int(row[2]), dict(_pairs(row[4]))) for row in rows
    ]
    return TrainingLog(
        source=source,
        config=config,
        seed=int(seeds[-1][1]) if seeds else None,
        aqr=_has_aqr(config, bool(prints) or any(_AQR_BUILT in line for line in lines)),
        steps_per_epoch=length,
        curves={**_train_curves(reports, source), **_print_curves(prints)},
        prints=prints,
        evaluations=_text_evaluations(lines),
    )


def parse_json(text: str, *, source: str) -> TrainingLog:
    """Read mmcv's records, one JSON object a line.

    Raises:
        HistoryError: If it has no losses, or a line is no JSON object.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise HistoryError(f"{source}:{number}: must be JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise HistoryError(f"{source}:{number}: must be a JSON object, but got {record!r}")
        records.append(record)
    train = [record for record in records if record.get("mode") == "train"]
    length = max((int(record["iter"]) for record in train), default=0)
    config: dict[str, Any] = {}
    for record in records:
        config |= _config(str(record.get("config", "")).splitlines())
    seeds = [record["seed"] for record in records if isinstance(record.get("seed"), int)]
    reports = [
        ((int(record["epoch"]) - 1) * length + int(record["iter"]), _numbers(record))
        for record in train
    ]
    return TrainingLog(
        source=source,
        config=config,
        seed=seeds[-1] if seeds else None,
        aqr=_has_aqr(config, False),
        steps_per_epoch=length,
        curves=_train_curves(reports, source),
        evaluations=tuple(
            Evaluation(epoch=int(record["epoch"]), metrics=_scores(_numbers(record)))
            for record in records
            if record.get("mode") == "val"
        ),
    )


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _pairs(text: str) -> Iterator[tuple[str, float]]:
    for name, value in _PAIR.findall(text):
        yield name, float(value)


def _has_aqr(config: Mapping[str, Any], was_printed: bool) -> bool:
    head = config.get("model", {}).get("pts_bbox_head", {})
    return bool(head.get("enable_aqr", was_printed))


def _train_curves(reports: Iterable[tuple[int, Mapping[str, float]]], source: str) -> Curves:
    """A step that a resumed training repeats counts as it came last."""
    curves: dict[str, dict[int, float]] = {}
    for step, values in reports:
        for name, value in values.items():
            if name not in _NO_CURVES:
                curves.setdefault(_RENAMED.get(name, f"train/{name}"), {})[step] = value
    if "train/loss" not in curves:
        raise HistoryError(
            f"{source} must be a training log of mmcv with lines such as "
            "`Epoch [1][50/4004] ... loss: 10.05`, but has none"
        )
    return {name: tuple(sorted(points.items())) for name, points in curves.items()}


def _prints(lines: Sequence[str]) -> Iterator[AqrPrint]:
    """Each block of AQR statistics: groups indented by one level, their values by two."""
    forward: int | None = None
    group, values = "", {}
    for line in lines:
        if start := _PRINT.search(line):
            if forward is not None:
                yield AqrPrint(forward=forward, values=values)
            forward, group, values = int(start[1]), "", {}
        elif forward is not None:
            if match := _GROUP.match(line):
                group = match[1]
            elif match := _STATISTIC.match(line):
                values[f"aqr/{group}/{match[1]}"] = float(match[2])
            elif not line.startswith(" "):
                yield AqrPrint(forward=forward, values=values)
                forward = None
    if forward is not None:
        yield AqrPrint(forward=forward, values=values)


def _print_curves(prints: Sequence[AqrPrint]) -> Curves:
    """Join the ranks: extremes of all, means of the rest."""
    curves: dict[str, list[tuple[int, float]]] = {}
    by_forward = groupby(sorted(prints, key=lambda each: each.forward), key=lambda p: p.forward)
    for forward, group in by_forward:
        columns: dict[str, list[float]] = {}
        for each in group:
            for name, value in each.values.items():
                columns.setdefault(name, []).append(value)
        for name, column in columns.items():
            curves.setdefault(name, []).append((forward, _joined(name, column)))
    return {name: tuple(points) for name, points in curves.items()}


def _joined(name: str, column: Sequence[float]) -> float:
    last = name.rsplit("/", 1)[-1]
    if last in ("max", "max_change"):
        return max(column)
    return min(column) if last == "min" else fmean(column)


def _text_evaluations(lines: Sequence[str]) -> tuple[Evaluation, ...]:
    """Evaluations of the log; the printed table where mmcv's own line is missing."""
    found: list[Evaluation] = []
    table: dict[str, float] = {}
    epoch = 0
    for line in lines:
        if match := _TRAIN.search(line):
            if "val/nds" in table:
                found.append(Evaluation(epoch=epoch, metrics=table))
            epoch, table = int(match[1]), {}
        elif match := _VAL.search(line):
            found.append(Evaluation(epoch=int(match[1]), metrics=_scores(dict(_pairs(match[2])))))
            table = {}
        elif match := _SUMMARY.search(line):
            table[f"val/{match[1].lower()}"] = float(match[2])
        elif (match := _CLASS_ROW.match(line)) and "val/nds" in table:
            table[f"val/ap/{match[1]}"] = float(match[2])
    if "val/nds" in table:
        found.append(Evaluation(epoch=epoch, metrics=table))
    return tuple(found)


def _scores(values: Mapping[str, float]) -> dict[str, float]:
    """Our names; the AP of a class is the mean over its distances."""
    short = {name.rsplit("/", 1)[-1]: value for name, value in values.items()}
    scores = {f"val/{name.lower()}": short[name] for name in _SCORES if name in short}
    by_class: dict[str, list[float]] = {}
    for name, value in short.items():
        if match := _CLASS_AP.match(name):
            by_class.setdefault(match[1], []).append(value)
    scores |= {f"val/ap/{name}": fmean(column) for name, column in by_class.items()}
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _config(lines: Sequence[str]) -> dict[str, Any]:
    """The top-level assignments of a config dump that hold plain values.

    Read one by one, since a dump may begin in the middle.
    """
    config: dict[str, Any] = {}
    chunk: list[str] = []
    for line in [*lines, ""]:
        if chunk and line.startswith((" ", ")", "]", "}")):
            chunk.append(line)
            continue
        if chunk:
            config |= _assignment("\n".join(chunk))
        chunk = [line] if _ASSIGNMENT.match(line) else []
    return config


def _assignment(text: str) -> dict[str, Any]:
    try:
        statement = ast.parse(text).body[0]
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.targets[0], ast.Name)
        return {statement.targets[0].id: _plain(statement.value)}
    except (SyntaxError, TypeError, ValueError):  # something else that looks like an assignment
        return {}


def _plain(node: ast.expr) -> Any:
    """The value of a literal, with `dict(...)` and `range(...)` as mmcv writes them."""
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return {str(each.arg): _plain(each.value) for each in node.keywords}
        case ast.Call(func=ast.Name(id="range")):
            return list(range(*(ast.literal_eval(each) for each in node.args)))
        case ast.Dict():
            keys = [None if key is None else ast.literal_eval(key) for key in node.keys]
            return {key: _plain(value) for key, value in zip(keys, node.values, strict=True)}
        case ast.List():
            return [_plain(each) for each in node.elts]
        case ast.Tuple():
            return tuple(_plain(each) for each in node.elts)
        case _:
            return ast.literal_eval(node)
