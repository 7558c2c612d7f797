"""Which entries of a file fit which of a model: by names and shapes alone, nothing is changed.

So it can be asked before a training starts, of a model on torch's meta device too.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from aqr_model.engine.weights.content import Content
from aqr_model.engine.weights.files import CheckpointError

AQR_PARTS = ("aqr_weight_generator.", "weight_renderer.", "feature_modulator.")
AQR_LEFTOVERS = (
    "aqr_weight_generator.bev_type_embed",
    "aqr_weight_generator.rv_type_embed",
    "weight_renderer.gaussian_kernel",
)
"""Entries of the users' files: embeddings that nothing reads, a kernel that follows from sigma."""

_COUNTER = "num_batches_tracked"  # of a batch norm; no result depends on it, old files lack it
_MOST_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What a file gives to a model.

    Attributes:
        path: The file.
        weights: What is loaded, by the names of the model and in its layout.
        parts: The modules that are loaded; empty for the whole model.
        skipped: Entries of the file that are not loaded.
        left: Entries of the model that keep their start.
        fresh: Those of them that belong to a part of AQR of which the file has nothing.
        notes: What was understood on the way, a sentence each.
    """

    path: Path
    weights: Mapping[str, Tensor]
    parts: tuple[str, ...]
    skipped: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        """What is loaded, skipped and left at its start, counted by module, a line each."""
        taken = ", ".join(self.parts) or "the whole model"
        lines = [f"{self.path}: {len(self.weights)} entries are loaded, {taken}"]
        if self.skipped:
            lines.append(f"  of the file are skipped: {_counted(self.skipped)}")
        if self.left:
            lines.append(f"  of the model keep their start: {_counted(self.left)}")
        return (*lines, *(f"  {note}" for note in self.notes))


@dataclass(frozen=True, kw_only=True)
class _Match:
    """The entries of a file, whose names begin with some prefix, against those of a model.

    Attributes:
        weights: What fits, by the names of the model.
        used: Names in the file of what fits, or is known to be of no use.
        named: Names of the model that the file has, whatever their shape, by their names in it.
        fresh: Entries of AQR that are absent as a whole.
        missing: Other entries that are absent.
        misshapen: Entries of another shape, with both.
        notes: What was understood on the way.
    """

    weights: Mapping[str, Tensor]
    used: frozenset[str]
    named: Mapping[str, str]
    fresh: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all of the model's side is there."""
        return bool(self.weights) and not self.missing and not self.misshapen


def fit(
    own: Mapping[str, Tensor],
    content: Content,
    *,
    parts: Sequence[str] = (),
    partial: bool = False,
) -> Loading:
    """Find what a file gives to a model.

    A file must fit entry by entry; only a freshly added AQR part may be missing, as a whole. With
    ``partial``, a file may hold one part alone, such as an image backbone, under any prefix or
    none: a top-level module whose entries are all there, while fewer than half of the names of the
    rest are.

    Args:
        own: State dict of the model.
        content: Of the file.
        parts: Modules of the model to load, each as a whole; all else is skipped.
        partial: Take a file that holds one part.

    Raises:
        CheckpointError: If the file does not fit, with what would take it.
    """
    if parts:
        return _loading(own, content, {part: _asked_for(own, content, part) for part in parts})
    whole = _match(own, content.weights, next(_prefixes(own, content.weights), ""))
    extra = [name for name in content.weights if name not in {*whole.used, *whole.named}]
    if whole.complete and not extra:
        return _loading(own, content, {"": whole})
    held = {part: match for part in _tops(own) if (match := _part(own, content, part)).complete}
    rest = {name for name in own if name.split(".")[0] not in held}
    if len(held) == 1 and 2 * len(rest.intersection(whole.named.values())) < len(rest):
        if partial:
            return _loading(own, content, held)
        raise CheckpointError(
            f"{content.path} must hold a whole detector, but holds {next(iter(held))} alone; a "
            "training can start from it (`load_from`)"
        )
    advice = "Use the config that this checkpoint was trained with."
    if held:
        advice += (
            " Or load what the file holds as a whole, and start the rest anew, by "
            f"`load_parts = {list(held)}`."
        )
    raise CheckpointError(
        f"every entry of {content.path} must fit the model, AQR's own apart, but:"
        f"{_problems(whole, extra)}\n{advice}"
    )


def _asked_for(own: Mapping[str, Tensor], content: Content, part: str) -> _Match:
    if not _inside(own, part):
        raise CheckpointError(
            f"`load_parts` must name modules of the model, but got {part!r}; at the top are "
            f"{', '.join(_tops(own))}"
        )
    match = _part(own, content, part)
    if not match.complete:
        raise CheckpointError(
            f"{content.path} must hold all of {part}, which `load_parts` names, but:"
            + _problems(match, ())
        )
    return match


def _part(own: Mapping[str, Tensor], content: Content, part: str) -> _Match:
    """Match a part wherever the file has it.

    Raises:
        CheckpointError: If the file has it twice.
    """
    inside = _inside(own, part)
    prefixes = list(_prefixes(inside, content.weights)) or [""]
    matches = [_match(inside, content.weights, prefix) for prefix in prefixes]
    whole = [prefix for prefix, match in zip(prefixes, matches, strict=True) if match.complete]
    if len(whole) > 1:
        raise CheckpointError(
            f"{content.path} must hold {part} once, but holds it under each of {whole}; choose one "
            f"by init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix=...) of {part}, and set "
            "`load_from = None`"
        )
    return next((match for match in matches if match.complete), matches[0])


def _match(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str) -> _Match:
    found = {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}
    idle = [name for name in found if name.endswith(AQR_LEFTOVERS) and name not in own]
    named = {name: _in_spconv2_layout(found[name], own[name]) for name in own if name in found}
    turned = sum(value is not found[name] for name, value in named.items())
    fits = {name: value for name, value in named.items() if value.shape == own[name].shape}
    fresh = tuple(name for name in own if _is_fresh(name, found))
    notes = []
    if idle:
        notes.append(f"dropped, because nothing reads it any more: {', '.join(idle)}")
    if turned:
        notes.append(f"{turned} sparse convolutions are turned from spconv 1's layout")
    if cast := sum(value.dtype != own[name].dtype for name, value in fits.items()):
        notes.append(f"{cast} entries are in another precision and are cast")
    return _Match(
        weights=fits,
        used=frozenset(prefix + name for name in (*fits, *idle)),
        named={prefix + name: name for name in named},
        fresh=fresh,
        missing=tuple(
            name for name in own if name not in {*named, *fresh} and not name.endswith(_COUNTER)
        ),
        misshapen=tuple(
            f"{name}: the model has {list(own[name].shape)}, the file {list(value.shape)}"
            for name, value in named.items()
            if name not in fits
        ),
        notes=tuple(notes),
    )


def _loading(own: Mapping[str, Tensor], content: Content, matches: Mapping[str, _Match]) -> Loading:
    """Put matches together, by the part of the model; the name of the whole model is empty."""
    fronts = {part: f"{part}." if part else "" for part in matches}
    weights = {
        fronts[part] + name: value
        for part, match in matches.items()
        for name, value in match.weights.items()
    }
    used = {name for match in matches.values() for name in match.used}
    return Loading(
        path=content.path,
        weights=weights,
        parts=tuple(filter(None, matches)),
        skipped=tuple(name for name in content.weights if name not in used),
        left=tuple(name for name in own if name not in weights),
        fresh=tuple(fronts[part] + n for part, match in matches.items() for n in match.fresh),
        notes=content.notes + tuple(note for match in matches.values() for note in match.notes),
    )


def _prefixes(own: Iterable[str], names: Iterable[str]) -> Iterator[str]:
    """What may stand before the model's names in the file, by how many names it explains."""
    known, counts = frozenset(own), Counter[str]()
    for name in names:
        words = name.split(".")
        for place in range(len(words)):
            if ".".join(words[place:]) in known:
                counts["".join(f"{word}." for word in words[:place])] += 1
    # Of two that explain as much, the shorter one: it claims less.
    return iter(sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix))))


def _is_fresh(name: str, weights: Iterable[str]) -> bool:
    """Whether an entry belongs to a part of AQR of which the file has nothing at all."""
    part = next((part for part in AQR_PARTS if part in name), None)
    return part is not None and not any(part in other for other in weights)


def _in_spconv2_layout(value: Tensor, own: Tensor) -> Tensor:
    """Turn spconv 1's (D, H, W, in, out) into spconv 2's (out, D, H, W, in).

    Shapes tell the layouts apart: kernels are 1 or 3 wide, and no layer has so few channels.
    """
    if value.dim() != 5 or value.shape == own.shape or value.movedim(-1, 0).shape != own.shape:
        return value
    return value.movedim(-1, 0).contiguous()


def _tops(own: Iterable[str]) -> tuple[str, ...]:
    """The model's top-level modules that have entries."""
    return tuple(dict.fromkeys(name.split(".")[0] for name in own))


def _inside(own: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    front = f"{part}."
    return {n.removeprefix(front): value for n, value in own.items() if n.startswith(front)}


def _problems(match: _Match, extra: Sequence[str]) -> str:
    """The first of each kind, so that no kind hides another."""
    kinds = {"missing": match.missing, "left over": extra, "shape of": match.misshapen}
    lines = []
    for kind, names in kinds.items():
        joint = " " if kind == "shape of" else ": "
        lines += [f"\n  {kind}{joint}{name}" for name in names[:_MOST_SHOWN]]
        if len(names) > _MOST_SHOWN:
            lines.append(f"\n  and {len(names) - _MOST_SHOWN} more of this kind")
    return "".join(lines)


def _counted(names: Iterable[str]) -> str:
    """How many there are of each top-level module."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{top} ({count})" for top, count in counts.items())
