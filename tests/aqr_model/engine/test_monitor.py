"""When statistics are made, what they cost between, and that they describe the whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cmt_cases import AQR, build, small_batch
from mmcv import Config
from recorder import Recorder
from syncs import host_reads

from aqr_model.aqr import aqr_statistics, weight_renderer
from aqr_model.engine.distributed import Workers, together
from aqr_model.engine.monitor import HISTOGRAMS_NAME, AqrMonitor

INTERVAL = 3


class Detector(torch.nn.Module):
    """As much of a detector as the monitor looks at."""

    def __init__(self, head):
        super().__init__()
        self.pts_bbox_head = head


def config(interval=INTERVAL, enable_aqr=True, **top):
    head = {"enable_aqr": enable_aqr, "visualization_interval": interval}
    return Config({"model": {"pts_bbox_head": head}, **top})


def routed_head():
    return build(**AQR).eval()


def samples(first=0, last=4):
    """Some of four samples."""
    points, images, metas, _, _ = small_batch((3, 1, 0, 2))
    return [points[0][first:last]], [images[0][6 * first : 6 * last]], metas[first:last]


def forward(head, first=0, last=4):
    outputs = head(*samples(first, last))[0][0]
    loss = torch.stack([outputs[name].square().mean() for name in ("center", "dim")]).sum()
    head.zero_grad(set_to_none=True)
    loss.backward()


def test_statistics_on_the_interval_only(tmp_path):
    head, report = routed_head(), Recorder()
    monitor = AqrMonitor(Detector(head), config(), report, workdir=tmp_path)
    for step in range(7):
        monitor.before_step(step)
        assert head.collect_aqr == (step in (2, 5))
        forward(head)
        assert (head.last_aqr is not None) == (step in (2, 5))
        monitor.after_part(step)
        monitor.after_backward(step)
        assert head.last_aqr is None
    assert list(report.logs) == [3, 6]
    assert "aqr/grad_norm/aqr_weight_generator.encoder" in report.logs[3]


def test_host_reads_nothing_for_statistics_between():
    head = routed_head()
    monitor = AqrMonitor(Detector(head), config(), Recorder())

    def reads_of_step(step, watched):
        with host_reads() as seen:
            if watched:
                monitor.before_step(step)
            forward(head)
            if watched:
                monitor.after_part(step)
                monitor.measure_gradients(step)
                monitor.after_backward(step)
        return seen

    without = reads_of_step(0, watched=False)
    assert reads_of_step(0, watched=True) == without
    assert reads_of_step(1, watched=True) == without
    due = reads_of_step(2, watched=True)
    assert len(due) > len(without)
    # The statistics, their histograms are off without a folder, and the gradient norms.
    assert due.count("tolist") - without.count("tolist") == 2


def test_routing_itself_reads_the_host_once(monkeypatch):
    # On a CPU the renderer looks how many queries a view sees; elsewhere it does not.
    monkeypatch.setattr(weight_renderer, "_HOSTS", ())

    def reads_of(**aqr):
        head = build(**AQR | aqr).eval()
        with host_reads() as seen:
            head(*samples())
        return seen

    plain, routed = reads_of(enable_aqr=False), reads_of()
    assert "nonzero" in plain  # the visible queries of CMT's own embedding
    for name in plain:
        routed.remove(name)
    # How many queries have how many views, see `query_windows`: to the host, then into a list.
    assert routed == ["to", "tolist"]


def test_collecting_reads_nothing_until_it_is_described():
    head = routed_head()
    with host_reads() as off:
        head(*samples())
    head.collect_aqr = True
    with host_reads() as on:
        head(*samples())
    assert on == off
    with host_reads() as described:
        aqr_statistics(**head.last_aqr)
    assert described == ["tolist"]


def test_histograms_reach_the_report_as_a_file(tmp_path):
    head, report = routed_head(), Recorder()
    monitor = AqrMonitor(Detector(head), config(interval=1), report, workdir=tmp_path)
    for step in range(40):
        monitor.before_step(step)
        forward(head)
        monitor.after_part(step)
        monitor.after_backward(step)
    path = tmp_path / HISTOGRAMS_NAME
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 41))
    shares = records[0]["aqr/lidar_weights_stats/histogram"]
    assert len(shares) == 20
    assert sum(shares) == pytest.approx(1.0)
    assert set(report.files) == {path}
    assert 1 < len(report.files) < 20  # not at every record: it is sent whole each time
    # Whoever reads what was handed over misses a fifth at most.
    assert report.files[0] == path


def test_without_aqr_nothing_is_reported():
    head, report = build(), Recorder()
    monitor = AqrMonitor(Detector(head), config(enable_aqr=False), report)
    for step in range(4):
        monitor.before_step(step)
        monitor.after_backward(step)
    assert report.logs == {}


def test_an_overflowed_gradient_is_left_out():
    head, report = routed_head(), Recorder()
    monitor = AqrMonitor(Detector(head), config(interval=1), report)
    monitor.before_step(0)
    forward(head)
    monitor.after_part(0)
    head.aqr_weight_generator.weight_predictor.bias.grad[0] = torch.inf
    monitor.after_backward(0)
    norms = [name for name in report.logs[1] if name.startswith("aqr/grad_norm/")]
    assert norms == ["aqr/grad_norm/aqr_weight_generator.encoder"]


def test_gradients_are_those_before_clipping():
    head, report = routed_head(), Recorder()
    monitor = AqrMonitor(Detector(head), config(interval=1), report)
    monitor.before_step(0)
    forward(head)
    monitor.after_part(0)
    weight = head.aqr_weight_generator.weight_predictor
    wanted = torch.cat([p.grad.flatten() for p in weight.parameters()]).norm().item()
    monitor.measure_gradients(0)
    torch.nn.utils.clip_grad_norm_(head.parameters(), 1e-6)
    monitor.after_backward(0)
    found = report.logs[1]["aqr/grad_norm/aqr_weight_generator.weight_predictor"]
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("parts", [[(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 4)]])
def test_accumulated_batches_report_what_one_whole_batch_would(parts, tmp_path):
    found = {}
    for name, split in {"split": parts, "whole": [(0, 4)]}.items():
        head, report = routed_head(), Recorder()
        monitor = AqrMonitor(Detector(head), config(interval=1), report, workdir=tmp_path / name)
        (tmp_path / name).mkdir()
        monitor.before_step(0)
        for first, last in split:
            forward(head, first, last)
            monitor.after_part(0)
            assert head.last_aqr is None
        monitor.after_backward(0)
        record = json.loads((tmp_path / name / HISTOGRAMS_NAME).read_text())
        shares = {f"{k}/{i}": x for k, v in record.items() if "/" in k for i, x in enumerate(v)}
        values = report.logs[1] | shares
        # Gradients of the parts add up in the loop, which zeroes them once a step.
        found[name] = {k: v for k, v in values.items() if "grad_norm" not in k}
    assert found["split"].keys() == found["whole"].keys()
    assert len(found["whole"]) > 90
    for name, value in found["whole"].items():
        assert found["split"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    alone = aqr_statistics(**last_seen(*parts[-1]))
    assert alone["aqr/lidar_weights_stats/mean"] != pytest.approx(
        found["split"]["aqr/lidar_weights_stats/mean"], rel=1e-4
    )


def last_seen(first, last):
    head = routed_head()
    head.collect_aqr = True
    head(*samples(first, last))
    return head.last_aqr


@pytest.mark.integration
def test_two_processes_report_what_one_with_the_whole_batch_would(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(tmp_path)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    shared = json.loads((tmp_path / "rank0.json").read_text())
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    whole = report_of(Workers(), tmp_path / "whole", 0, 4, Recorder())
    assert shared.keys() == whole.keys()
    assert len(whole) > 90
    for name, value in whole.items():
        assert shared[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def report_of(workers, folder, first, last, report):
    """One reported step on some of the samples: statistics and histograms by name."""
    folder.mkdir()
    head = routed_head()
    monitor = AqrMonitor(
        Detector(head), config(interval=1), report, workers=workers, workdir=folder
    )
    monitor.before_step(0)
    forward(head, first, last)
    monitor.after_part(0)
    for parameter in head.parameters():  # as DistributedDataParallel does
        if parameter.grad is not None:
            parameter.grad = workers.mean(parameter.grad)
    monitor.measure_gradients(0)
    monitor.after_backward(0)
    if report is None:
        assert not list(folder.iterdir())
        return {}
    record = json.loads((folder / HISTOGRAMS_NAME).read_text())
    bins = {
        f"{name}/{i}": x for name, row in record.items() if "/" in name for i, x in enumerate(row)
    }
    return report.logs[1] | bins


def _main(folder):
    torch.distributed.init_process_group("gloo")
    with together() as workers:
        rank = workers.rank
        found = report_of(
            workers,
            folder / f"work{rank}",
            2 * rank,
            2 * rank + 2,
            Recorder() if workers.is_main else None,
        )
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
