"""A training step of the R50 detector on paper: operations, bytes, and the least time they take.

``python scripts/step_on_paper.py`` runs the step on torch's meta device, which computes nothing.
torch's own counter gives the operations, of the forward pass by part and of the whole step. A part
that trains is counted three times, as its gradients take twice the forward's operations; one that
is frozen once. Bytes are what each operation of torch reads and writes, but for attention weights,
which the flash kernel never writes. The sparse encoder is left out: its work depends on the points.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import meta_step  # noqa: E402

HEAD = "pts_bbox_head"
PARTS = {  # by the longest name that a module's name begins with
    "img_backbone": "image backbone",
    "img_neck": "image neck",
    "pts_backbone": "BEV backbone",
    "pts_neck": "BEV neck",
    f"{HEAD}.transformer": "decoder",
    f"{HEAD}.task_heads": "task heads",
    f"{HEAD}.aqr_weight_generator": "AQR: generator",
    f"{HEAD}.weight_renderer": "AQR: renderer",
    f"{HEAD}.feature_modulator": "AQR: modulator",
    HEAD: "positions, queries, shared convolution",
}
REST = "losses and the rest"
# bf16 and TF32, TFLOP/s without sparsity; memory, TB/s. NVIDIA's data sheets, SXM.
CARDS = {"A100 80GB": (312, 156, 2.04), "H100 80GB": (989, 495, 3.35)}
LOW = ("image backbone", "image neck", "BEV backbone", "BEV neck", "decoder")  # may be bf16
WIDTHS = (1, 2, 3, 4, 10, 20, 25, 32, 50, 64, 128, 192, 256, 512, 768, 1024, 1536)
_NO_WORK = (
    "view expand t transpose permute detach unsqueeze squeeze slice select split unbind alias "
    "as_strided _unsafe_view empty empty_like new_empty"
).split()


def part_of(names: Iterator[str]) -> str:
    """The part that a set of module names belongs to."""
    tails = [name.partition(".")[2] for name in names]
    found = [key for key in PARTS for tail in tails if tail == key or tail.startswith(f"{key}.")]
    return PARTS[max(found, key=len)] if found else REST


class Bytes(TorchDispatchMode):
    """Count what operations read and write, by part."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()
        self.tracker = tracker
        self.of_part: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in _NO_WORK:
            moved = [x for x in _tensors((args, kwargs, out)) if not _on_chip(x)]
            sizes = [x.numel() * x.element_size() for x in moved]
            self.of_part[part_of(iter(self.tracker.parents))] += sum(sizes)
        return out


def _on_chip(tensor: Tensor) -> bool:
    """Whether a tensor holds attention weights: queries by keys, and neither a head's channels."""
    return tensor.dim() >= 3 and tensor.shape[-1] not in WIDTHS and tensor.shape[-2] not in WIDTHS


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def count(batch: int, boxes: int) -> tuple[Counter[str], Counter[str], float]:
    """Operations and bytes of each part, and the operations of a whole step as torch counts them.

    A multiply-add is two operations.
    """
    model = meta_step.build()
    counter, step = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with meta_step.stand_ins(batch):
        with ExitStack() as stack:
            tracker = stack.enter_context(ModuleTracker())
            moved = stack.enter_context(Bytes(tracker))
            stack.enter_context(counter)
            meta_step.step(model, batch, boxes=boxes, backward=False)
        with step:
            meta_step.step(model, batch, boxes=boxes)
    forward = Counter({key: 0 for key in PARTS})
    for name, ops in counter.get_flop_counts().items():
        if (key := name.partition(".")[2]) in PARTS:
            forward[key] = sum(ops.values())
    flops: Counter[str] = Counter()
    for key, value in forward.items():
        below = sum(other for name, other in forward.items() if name.startswith(f"{key}."))
        trains = any(p.requires_grad for p in model.get_submodule(key).parameters())
        passes = 3 if trains else 1
        flops[PARTS[key]] = passes * (value - below)
        moved.of_part[PARTS[key]] *= passes
    moved.of_part[REST] *= 3
    return flops, moved.of_part, step.get_total_flops()


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=80, help="of a sample; ten groups are made")
    args = parser.parse_args()
    flops, moved, whole = count(args.batch, args.boxes)
    print(f"batch {args.batch}, {10 * args.boxes} denoising and 900 matching queries\n")
    heads = [f"least ms, {card}" for card in CARDS]
    print("| part | TFLOP | GB | " + " | ".join(heads) + " |")
    print("|---|---|---|" + "---|" * len(heads))
    totals = [0.0] * len(CARDS)
    for part in dict.fromkeys([*PARTS.values(), REST]):
        low = part in LOW
        size = moved[part] / (2 if low else 1)  # activations of two bytes instead of four
        least = []
        for place, (bf16, tf32, bandwidth) in enumerate(CARDS.values()):
            ms = max(flops[part] / (bf16 if low else tf32) / 1e9, size / bandwidth / 1e9)
            totals[place] += ms
            least.append(f"{ms:.1f}")
        print(f"| {part} | {flops[part] / 1e12:.3f} | {size / 1e9:.1f} | {' | '.join(least)} |")
    shown = " | ".join(f"{total:.0f}" for total in totals)
    print(f"| all | {flops.total() / 1e12:.2f} | | {shown} |")
    print(f"\ntorch counts {whole / 1e12:.2f} TFLOP in the whole step")


if __name__ == "__main__":
    main()
