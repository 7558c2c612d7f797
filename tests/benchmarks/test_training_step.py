"""What AQR adds to a training step: the control and AQR in turns, in one process.

The control is the same file with `enable_aqr=False`, as in a sweep: backbones and necks of the R50
file are frozen in both. A step is forward, losses, backward, clipping and the optimizer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from measure import show, side_by_side

keyframe = pytest.importorskip("keyframe", reason="the detector needs mmdet3d")

from mmdet3d.datasets import build_dataset  # noqa: E402
from mmdet3d.models import build_model  # noqa: E402

from aqr_model.engine.batches import seed_everything  # noqa: E402
from aqr_model.engine.optim.freezing import Frozen  # noqa: E402
from aqr_model.engine.optim.param_groups import make_optimizer  # noqa: E402
from aqr_model.engine.transfer import to_device  # noqa: E402
from aqr_model.preflight.reading import load_config  # noqa: E402

NANO = "aqr_model/configs/cmt_aqr_nano.py"
R50 = "cmt_aqr_voxel0100_r50_800x320_cbgs.py"
MOST_ON_NANO, MOST_ON_R50 = 1.10, 1.05
MOST_NANO_STEP_S = 0.3


class Stepper:
    """A detector with its optimizer, after `init_weights`."""

    def __init__(self, cfg: Any, batch: dict[str, Any]) -> None:
        seed_everything(0)
        self.model = build_model(cfg.model)
        self.model.init_weights()
        frozen = Frozen(self.model, cfg)
        self.optimizer = make_optimizer(self.model, cfg.optimizer)
        frozen.train_mode()
        self.batch = batch

    def __call__(self) -> None:
        seed_everything(1)  # dropout and denoising noise
        terms = self.model(return_loss=True, **self.batch)
        loss = torch.stack([value for name, value in terms.items() if "loss" in name]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        learning = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(learning, 35.0)
        self.optimizer.step()


def pair(make_cfg: Callable[[], Any], batch: dict[str, Any]) -> tuple[Stepper, Stepper]:
    """The detector with AQR, and its control."""
    steppers = []
    for enabled in (True, False):
        cfg = make_cfg()
        cfg.model.pts_bbox_head.enable_aqr = enabled
        steppers.append(Stepper(cfg, batch))
    routed, control = steppers
    return routed, control


def nano_cfg() -> Any:
    cfg = load_config(NANO)
    if not Path(cfg.data.train.ann_file).is_file():
        pytest.skip("data/synthetic/shifted is not there: make data")
    return cfg


@pytest.fixture(scope="module")
def nano() -> tuple[Stepper, Stepper]:
    from mmcv.parallel import collate

    dataset = build_dataset(nano_cfg().data.train)
    seed_everything(5)
    batch: Any = collate([dataset[0], dataset[1]], samples_per_gpu=2)
    return pair(nano_cfg, to_device(batch, torch.device("cpu")))


def compare(benchmark: Any, steppers: tuple[Stepper, Stepper], *, rounds: int) -> float:
    """Report the ratio of the medians; the benchmark's own time is that of AQR."""
    routed, control = steppers
    routed_s, control_s = side_by_side([routed, control], rounds=rounds, warm_up=1)
    benchmark.pedantic(routed, rounds=1)
    ratio = routed_s / control_s
    show(benchmark, threads=torch.get_num_threads(), s=routed_s, control_s=control_s, ratio=ratio)
    return ratio


def test_nano_step_against_its_control(benchmark, nano):
    torch.set_num_threads(1)
    assert compare(benchmark, nano, rounds=40) <= MOST_ON_NANO


def test_nano_step(benchmark, nano):
    """Two samples, on two cores."""
    torch.set_num_threads(2)
    benchmark.pedantic(nano[0], rounds=30, warmup_rounds=3)
    median_s = benchmark.stats.stats.median
    show(benchmark, threads=2, s=median_s)
    assert median_s <= MOST_NANO_STEP_S


@pytest.mark.skipif(not keyframe.available(), reason=keyframe.ABSENT)
def test_r50_step_against_its_control(benchmark, tmp_path):
    """One sample, the real keyframe."""
    torch.set_num_threads(1)
    infos = keyframe.write_infos(tmp_path / "infos.pkl")

    def cfg() -> Any:
        return keyframe.keyframe_config(R50, infos)

    steppers = pair(cfg, keyframe.keyframe_batch(cfg()))
    assert compare(benchmark, steppers, rounds=4) <= MOST_ON_R50
