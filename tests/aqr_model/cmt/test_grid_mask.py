import numpy as np
import pytest
import torch

from aqr_model.cmt.images.grid_mask import GridMask


@pytest.mark.parametrize("seed", range(5))
def test_all_images_get_the_same_mask_and_keep_what_it_shows(seed):
    images = torch.rand(3, 3, 40, 60) + 0.5
    np.random.seed(seed)
    masked = GridMask(probability=1.0).train()(images)
    kept = masked != 0
    assert torch.equal(kept, kept[:1, :1].expand_as(kept))
    assert torch.equal(masked[kept], images[kept])


def test_a_share_of_the_training_batches_is_masked_and_no_other():
    images, mask = torch.ones(1, 1, 20, 30), GridMask(probability=0.7)
    np.random.seed(0)
    assert 0.6 < np.mean([mask.train()(images) is not images for _ in range(400)]) < 0.8
    assert all(mask.eval()(images) is images for _ in range(10))
