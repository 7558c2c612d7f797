"""What a GPU makes of this project: right beside the CPU, how fast, how much memory, a training.

``python scripts/gpu_check.py`` takes under five minutes on one GPU and prints a table; ``--json``
keeps the numbers. It runs on a bare machine with torch and numpy; parts whose packages are missing
are skipped by name. On the CPU ``--small`` runs every part at a size that shows only that the
script works.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests" / "helpers")]

import aqr_alone  # noqa: E402  (torch alone)

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STACK = ("mmcv", "mmdet", "mmdet3d", "spconv")
FORMATS = ("fp32", "tf32", "bf16")


class Rows:
    """The table: lines of a part, what was measured, a text or numbers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.part = ""

    def add(self, what: str, **numbers: Any) -> None:
        """Keep a line and print it at once."""
        self.rows.append({"part": self.part, "what": what, **numbers})
        shown = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in numbers.items()
        )
        print(f"  {what}: {shown}", flush=True)


@contextmanager
def rounding(name: str) -> Iterator[None]:
    """Compute in a format: fp32, tf32 (products of float32 matrices), bf16 (autocast)."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=name == "bf16"):
        yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def wait() -> None:
    """Until the device has done all."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], *, rounds: int = 10, warm_up: int = 3) -> float:
    """Median time of a run."""
    taken = []
    for turn in range(warm_up + rounds):
        wait()
        start = time.perf_counter()
        work()
        wait()
        if turn >= warm_up:
            taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def peak_mb(work: Callable[[], object]) -> float:
    """Most memory in use during a run, beyond what was held before; 0 on the CPU."""
    if DEVICE.type != "cuda":
        return 0.0
    wait()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def error(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Largest relative error by norm."""
    pairs = zip(ours, exact, strict=True)
    return max(
        float((a.cpu().double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in pairs
    )


def versions(rows: Rows, small: bool) -> None:
    """What runs."""
    packages = ("numpy", "torchvision", *STACK, "nuscenes")
    found = {name: _version(name) for name in packages}
    rows.add("versions", python=sys.version.split()[0], torch=torch.__version__, **found)
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        rows.add(
            "device",
            name=properties.name,
            memory_gib=properties.total_memory / 2**30,
            cuda=torch.version.cuda,
            number=torch.cuda.device_count(),
        )
    else:
        rows.add("device", name="CPU")


def _version(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "missing"
    module = sys.modules.get(name)
    return str(getattr(module, "__version__", "there"))


def aqr_beside_the_cpu(rows: Rows, small: bool) -> None:
    """Generator and renderer, values and gradients, against float32 on the CPU."""
    queries = 90 if small else 900
    makers = {
        "generator": lambda: aqr_alone.generating("r50", queries, "fast"),
        "renderer": lambda: aqr_alone.rendering("r50", queries, "fast"),
    }
    for name, make in makers.items():
        aqr_alone.DEVICE = CPU
        exact = make()()
        aqr_alone.DEVICE = DEVICE
        work = make()
        errors = {}
        for form in FORMATS:
            with rounding(form):
                errors[form] = error(work(), exact)
        rows.add(f"{name}, relative error", **errors)
        limits = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}
        if name == "renderer":  # never rounded
            limits = dict.fromkeys(FORMATS, 1e-4)
        for form, limit in limits.items():
            assert errors[form] < limit, f"{name} in {form}: {errors[form]} >= {limit}"


def aqr_speed(rows: Rows, small: bool) -> None:
    """Generator and renderer, forward and backward, and the generator's dense twin."""
    for size in ("r50", "vov")[: 1 if small else 2]:
        queries = 90 if small else 900
        for form in FORMATS[1:]:
            with rounding(form):
                work = aqr_alone.generating(size, queries, "fast")
                ms, mb = milliseconds(work), peak_mb(work)
            rows.add(f"generator {size} {form}", ms=ms, mb=mb)
        work = aqr_alone.rendering(size, queries, "fast")
        rows.add(f"renderer {size}", ms=milliseconds(work), mb=peak_mb(work))
    if not small:
        with rounding("tf32"):
            work = aqr_alone.generating("r50", 900, "masked, fused")
            rows.add("dense twin r50 tf32", ms=milliseconds(work, rounds=3), mb=peak_mb(work))


def _projections() -> Any:
    """The decoder's arithmetic, without the package around it."""
    path = ROOT / "aqr_model" / "cmt" / "decoder" / "projections.py"
    spec = importlib.util.spec_from_file_location("projections", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention(rows: Rows, small: bool) -> None:
    """Denoising groups against a mask, the memory's kernels, and both against the CPU."""
    projections = _projections()
    batch, matching, tokens = (1, 90, 500) if small else (4, 900, 22384)
    groups = projections.Groups(10, 4 if small else 80)
    draw = torch.Generator().manual_seed(0)
    queries = groups.num_queries + matching
    heads = [torch.randn(batch, 8, queries, 32, generator=draw) for _ in range(3)]
    memory = [torch.randn(batch, 8, tokens, 32, generator=draw) for _ in range(2)]
    group = torch.arange(groups.num_queries) // groups.size
    group = torch.cat([group, group.new_full((matching,), -1)])
    seen = (group == group[:, None]) | (group < 0)

    def run(form: str, part: str, device: torch.device) -> tuple[Callable[[], Any], list[Tensor]]:
        dtype = torch.bfloat16 if form == "bf16" else torch.float32
        inputs = heads if part != "cross" else [heads[0], *memory]
        leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
        mask = seen.to(device)
        ways = {
            "grouped": lambda: projections.attend_in_groups(leaves, groups),
            "masked": lambda: F.scaled_dot_product_attention(*leaves, attn_mask=mask),
            "cross": lambda: F.scaled_dot_product_attention(*leaves),
        }

        def work() -> list[Tensor]:
            out = ways[part]()
            return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

        return work, leaves

    for part in ("grouped", "cross"):
        exact = run("fp32", "masked" if part == "grouped" else part, CPU)[0]()
        errors = {}
        for form in FORMATS:
            with rounding(form):
                errors[form] = error(run(form, part, DEVICE)[0](), exact)
        rows.add(f"{part} attention, relative error", **errors)
        assert errors["fp32"] < 1e-4
        assert errors["bf16"] < 0.05
    for form in FORMATS[1:]:
        for part in ("grouped", "masked", "cross"):
            with rounding(form):
                work = run(form, part, DEVICE)[0]
                rows.add(f"{part} {form}", ms=milliseconds(work), mb=peak_mb(work))
    if DEVICE.type == "cuda":
        for part in ("grouped", "cross"):
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where flash cannot be used
                rows.add(f"{part} bf16, flash alone", ms=milliseconds(run("bf16", part, DEVICE)[0]))


def head_beside_the_cpu(rows: Rows, small: bool) -> None:
    """The R50 head with AQR: losses and gradients of one sample against float32 on the CPU."""
    cases = importlib.import_module("head_cases")

    def run(form: str, device: torch.device) -> list[Tensor]:
        head, step = cases.head_step("r50", 1, aqr=True, device=device, dropout=False)
        head.decoder_dtype = torch.bfloat16 if form == "bf16" else None
        losses = step()
        grads = [p.grad for p in head.parameters() if p.grad is not None]
        return [torch.stack(list(losses.values())).detach(), *grads]

    exact = run("fp32", CPU)
    errors, worst = {}, {}
    for form in FORMATS:
        torch.backends.cuda.matmul.fp32_precision = "ieee" if form == "fp32" else "tf32"
        found = run(form, DEVICE)
        errors[form] = error(found[:1], exact[:1])
        worst[form] = statistics.median(error([a], [b]) for a, b in zip(found[1:], exact[1:]))  # noqa: B905
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    rows.add("24 losses, relative error", **errors)
    rows.add("gradients, median relative error", **worst)
    assert errors["fp32"] < 1e-3
    assert errors["bf16"] < 0.05


def head_speed(rows: Rows, small: bool) -> None:
    """A step of the head alone, control and AQR."""
    cases = importlib.import_module("head_cases")
    for size, batch in (("r50", 1),) if small else (("r50", 4), ("vov", 2)):
        for form in ("bf16",) if small else ("tf32", "bf16"):
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            taken = {}
            for aqr in (False, True):
                head, step = cases.head_step(size, batch, aqr=aqr)
                head.decoder_dtype = torch.bfloat16 if form == "bf16" else None
                rounds, warm_up = (1, 0) if small else (10, 3)
                ms = milliseconds(step, rounds=rounds, warm_up=warm_up)
                taken["AQR" if aqr else "control"] = (ms, peak_mb(step))
            rows.add(
                f"head {size} batch {batch} {form}",
                control_ms=taken["control"][0],
                aqr_ms=taken["AQR"][0],
                control_mb=taken["control"][1],
                aqr_mb=taken["AQR"][1],
            )
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def _cloud(num_points: int) -> Tensor:
    """Points about as dense as ten sweeps: many near, few far. [N, 5]."""
    radius = 2 + 50 * torch.rand(num_points).pow(1.5)
    angle = 6.283 * torch.rand(num_points)
    z = -1.8 + 0.1 * torch.randn(num_points) + 3 * torch.rand(num_points).pow(6)
    rest = torch.rand(num_points, 2)
    return torch.cat([torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1), rest], 1)


def detector_speed(rows: Rows, small: bool) -> None:
    """Whole steps of the R50 detector: forward, backward, clipping, optimizer; batch of 4."""
    cases = importlib.import_module("head_cases")
    build = importlib.import_module("mmdet3d.models").build_model
    reading = importlib.import_module("aqr_model.preflight.reading")
    optim = importlib.import_module("aqr_model.engine.optim.param_groups")
    freezing = importlib.import_module("aqr_model.engine.optim.freezing")
    precision = importlib.import_module("aqr_model.engine.optim.precision")
    loop = importlib.import_module("aqr_model.engine.loop")
    transfer = importlib.import_module("aqr_model.engine.transfer")
    batch = 1 if small else 4
    size = importlib.import_module("dataclasses").replace(aqr_alone.SIZES["r50"], batch=batch)
    torch.manual_seed(0)
    metas = cases.make_metas(size)
    images = torch.randn(batch, 6, 3, *size.image)
    clouds = [_cloud(5000 if small else 250_000) for _ in range(batch)]
    formats = {
        "fp32": {"tf32": False},
        "tf32": {},
        "bf16": {"images": "bf16", "bev": "bf16", "decoder": "bf16"},
    }
    for form in ("fp32",) if small else formats:
        taken: dict[str, Any] = {}
        for aqr in (False, True):
            cfg = reading.load_config(cases.CONFIGS["r50"])
            cfg.model.pts_bbox_head.enable_aqr = aqr
            model = build(cfg.model)
            model.init_weights()
            model.to(DEVICE)
            precision.apply_precision(model, precision.Precision(**formats[form]))
            frozen = freezing.Frozen(model, cfg)
            frozen.train_mode()
            optimizer = optim.make_optimizer(model, cfg.optimizer)

            def step(model: nn.Module = model, optimizer: Any = optimizer) -> None:
                sent = transfer.to_device({"img": images, "points": clouds}, DEVICE)
                terms = model(
                    return_loss=True,
                    img_metas=metas,
                    gt_bboxes_3d=[meta["gt_bboxes_3d"] for meta in metas],
                    gt_labels_3d=[meta["gt_labels_3d"] for meta in metas],
                    **sent,
                )
                optimizer.zero_grad(set_to_none=True)
                loop.total_loss(terms).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
                optimizer.step()

            name = "AQR" if aqr else "control"
            rounds, warm_up = (1, 0) if small else (10, 4)
            taken[f"{name}_ms"] = milliseconds(step, rounds=rounds, warm_up=warm_up)
            taken[f"{name}_mb"] = peak_mb(step)
            if DEVICE.type == "cuda":
                taken[f"{name}_waits"] = _waits(step)
        rows.add(f"R50 step, batch {batch}, {form}", **taken)


def _waits(step: Callable[[], object]) -> int:
    """How often the host waits for the device in a step, as torch itself counts."""
    wait()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    places: dict[str, int] = {}
    for one in caught:
        if "synchronizing" in str(one.message):
            place = f"{Path(one.filename).parent.name}/{Path(one.filename).name}:{one.lineno}"
            places[place] = places.get(place, 0) + 1
    print("    waits:", places)
    return sum(places.values())


def training(rows: Rows, small: bool) -> None:
    """The nano detector on synthetic data: a training, its resume, its score."""
    run = importlib.import_module("aqr_model.train").train
    reading = importlib.import_module("aqr_model.preflight.reading")
    synthetic = importlib.import_module("aqr_model.data.synthetic")
    prepare = importlib.import_module("aqr_model.data.prepare").prepare
    reports = importlib.import_module("aqr_model.report.reports")
    steps = 6 if small else 50
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        start = time.perf_counter()
        settings = synthetic.SyntheticConfig(
            domain="shifted", train_scenes=10, val_scenes=2, keyframes=2, seed=5, azimuths=120
        )
        synthetic.write_dataset(root, settings)
        prepare(root, "v1.0-synth")
        rows.add("data", s=time.perf_counter() - start)
        cfg = reading.load_config(ROOT / "aqr_model/configs/cmt_aqr_nano.py")
        for split in ("train", "val"):
            cfg.data[split].data_root = str(root)
            cfg.data[split].ann_file = str(root / f"nuscenes_infos_synth_{split}.pkl")
        cfg.merge_from_dict(
            {
                "load_from": str(ROOT / "aqr_model/checkpoints/cmt_nano.pth"),
                "total_epochs": steps / 10,
                "evaluation": {"rungs": [0.5, 1.0], "val_shares": [1.0, 1.0]},
                "log_config.interval": 5 if not small else 2,
                "data.workers_per_gpu": 0 if small else 4,
            }
        )

        class Stop(reports.ConsoleReport):
            def rung(self, metrics: Any, *, fraction: float, **more: Any) -> None:
                super().rung(metrics, fraction=fraction, **more)
                if fraction < 1 and self.stops:
                    raise KeyboardInterrupt

        def train(folder: str, *, stops: bool, resume: bool) -> list[dict[str, float]]:
            report = Stop(Path(temporary) / folder)
            report.stops = stops
            latest = Path(temporary) / folder / "latest.pth"
            try:
                run(
                    cfg,
                    workdir=latest.parent,
                    report=report,
                    resume_from=latest if resume else None,
                )
            except KeyboardInterrupt:
                assert stops
            return [json.loads(line) for line in report.path.read_text().splitlines()]

        start = time.perf_counter()
        whole = train("whole", stops=False, resume=False)
        rows.add("training", steps=steps, s=time.perf_counter() - start)
        train("cut", stops=True, resume=False)
        resumed = train("cut", stops=False, resume=True)
    losses = [line["train/loss"] for line in whole if "train/loss" in line]
    scores = [line["val/nds"] for line in whole if "val/nds" in line]
    again = [line["train/loss"] for line in resumed if "train/loss" in line]
    rows.add("loss", first=losses[0], last=losses[-1], nds=scores[-1])
    rows.add("resumed", last_loss=again[-1], whole=losses[-1])
    if not small:
        assert losses[-1] < losses[0], "the loss does not fall"
        assert abs(again[-1] - losses[-1]) < 0.1 * losses[-1], "the resume goes another way"


def two_processes(rows: Rows, small: bool) -> None:
    """Gradients over nccl are those of one process with both batches."""
    if torch.cuda.device_count() < 2:
        rows.add("nccl", skipped="one GPU")
        return
    torch.multiprocessing.spawn(_average, nprocs=2)
    rows.add("nccl", result="gradients averaged over two GPUs")


def _average(rank: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("nccl", init_method="tcp://127.0.0.1:29501", rank=rank, world_size=2)
    torch.cuda.set_device(rank)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 3).cuda())
    model(torch.full((4, 8), float(rank + 1), device="cuda")).sum().backward()
    assert torch.allclose(model.module.weight.grad.cpu(), torch.full((3, 8), 6.0))
    dist.destroy_process_group()


PARTS: dict[str, tuple[Callable[[Rows, bool], None], tuple[str, ...]]] = {
    "versions": (versions, ()),
    "AQR beside the CPU": (aqr_beside_the_cpu, ()),
    "AQR's speed": (aqr_speed, ()),
    "attention": (attention, ()),
    "head beside the CPU": (head_beside_the_cpu, STACK),
    "head's speed": (head_speed, STACK),
    "detector's speed": (detector_speed, STACK),
    "training": (training, (*STACK, "nuscenes")),
    "two processes": (two_processes, ()),
}


def main() -> int:
    """Run all parts; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    rows, failed, begin = Rows(), [], time.perf_counter()
    for name in args.only:
        run, needs = PARTS[name]
        rows.part = name
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        print(f"{name}", flush=True)
        if missing:
            rows.add("skipped", missing=", ".join(missing))
            continue
        start = time.perf_counter()
        try:
            run(rows, args.small)
        except Exception:  # noqa: BLE001  (every part is tried; the table says which failed)
            failed.append(name)
            rows.add("FAILED", error=traceback.format_exc().strip().splitlines()[-1])
            traceback.print_exc()
        rows.add("took", s=time.perf_counter() - start)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    print(f"all: {time.perf_counter() - begin:.0f} s; failed: {', '.join(failed) or 'none'}")
    if args.json:
        args.json.write_text(json.dumps(rows.rows, indent=1))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
