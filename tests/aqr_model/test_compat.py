"""The shims leave the stack working and quiet; each in a fresh process, as users meet it."""

import subprocess
import sys


def output_of(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout + done.stderr


def test_one_import_registers_the_detector_quietly():
    text = output_of(
        "import aqr_model\n"
        "import mmcv, mmdet3d, torchvision, mmcv.ops\n"
        "from mmdet3d.models import DETECTORS\n"
        "from mmdet3d.datasets import DATASETS, PIPELINES\n"
        "assert 'CmtDetector' in DETECTORS\n"
        "assert 'CustomNuScenesDataset' in DATASETS\n"
        "assert 'ResizeCropFlipImage' in PIPELINES\n"
        "print(mmcv.__version__)\n"
    )
    assert text == "1.7.2\n"


def test_a_compiled_operator_of_mmcv_that_is_missing_is_named_when_it_is_called():
    text = output_of(
        "import aqr_model, importlib.machinery, mmcv.ops, sys, torch\n"
        "try:\n"
        "    mmcv.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except NotImplementedError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    assert 'mmcv._ext' in sys.modules and mmcv._ext.__file__\n"  # compiled after all
        "    print('`nms` MMCV_OPS=1')\n"
    )
    assert "`nms`" in text
    assert "MMCV_OPS=1" in text


def test_initialising_a_detector_logs_nothing():
    text = output_of(
        "import aqr_model\n"
        "from mmcv import Config\n"
        "from aqr_model.engine.setup import build_detector\n"
        "build_detector(Config.fromfile('aqr_model/configs/cmt_nano.py'))\n"
    )
    assert text == ""


def test_sparse_convolutions_and_their_gradients_are_right_with_several_threads():
    # spconv's threads on the CPU share their pointers: without the shim about every third result is
    # wrong by a large part of itself. Torch's own convolution is the reference.
    output_of(
        "import os; os.environ['OMP_NUM_THREADS'] = '4'\n"
        "import aqr_model, torch\n"
        "import spconv.pytorch as spconv\n"
        "from threadpoolctl import threadpool_limits\n"
        "threadpool_limits(4)\n"  # whatever a caller asks for
        "draw = torch.Generator().manual_seed(0)\n"
        "places = torch.randint(24, (4000, 3), generator=draw).unique(dim=0).int()\n"
        "places = torch.cat([torch.zeros(len(places), 1).int(), places], dim=1)\n"
        "features = torch.randn(len(places), 16, generator=draw)\n"
        "dense = torch.zeros(1, 16, 24, 24, 24)\n"
        "dense[0, :, *places[:, 1:].long().T] = features.T\n"
        "conv = spconv.SubMConv3d(16, 32, 3, bias=False)\n"
        "features.requires_grad_(), dense.requires_grad_()\n"
        "weight = conv.weight.detach().permute(0, 4, 1, 2, 3).requires_grad_()\n"
        "want = torch.nn.functional.conv3d(dense, weight, padding=1)\n"
        "want = want[0][:, *places[:, 1:].long().T].T\n"
        "direction = torch.randn(want.shape, generator=draw)\n"
        "of_dense, of_weight = torch.autograd.grad(want, (dense, weight), direction)\n"
        "of_dense = of_dense[0][:, *places[:, 1:].long().T].T\n"
        "for _ in range(60):\n"
        "    got = conv(spconv.SparseConvTensor(features, places, [24] * 3, 1)).features\n"
        "    grads = torch.autograd.grad(got, (features, conv.weight), direction)\n"
        "    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)\n"
        "    torch.testing.assert_close(grads[0], of_dense, rtol=1e-4, atol=1e-4)\n"
        "    of_conv = grads[1].permute(0, 4, 1, 2, 3)\n"
        "    torch.testing.assert_close(of_conv, of_weight, rtol=1e-3, atol=1e-3)\n"
        "assert torch.get_num_threads() > 1 and 'OMP_THREAD_LIMIT' not in os.environ\n"
    )


def test_the_engine_and_the_command_line_load_without_the_training_stack():
    output_of(
        "import sys, pkgutil, importlib, sweeps, launch\n"
        "for package in (sweeps, launch):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "heavy = {'torch', 'mmcv', 'mmdet', 'mmdet3d', 'mmseg', 'aqr_model'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
