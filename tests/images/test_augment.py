"""Augmentation is a function of seed, epoch and image, and its operations are torchvision's."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from pipeline.images import Augmentation, Geometry, to_pixels
from pipeline.images.augment import RAND_OPERATIONS, STRENGTH

DIGEST = bytes(range(32))


def image(width=50, height=40):
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(kind, epoch=1, seed=0, digest=DIGEST, **options):
    return to_pixels(image(), Geometry(37, 32, augmentation=Augmentation(kind, seed, epoch, **options)), digest)


@pytest.mark.parametrize("kind", ["flip", "crop", "weights"])
def test_the_same_seed_epoch_and_image_give_the_same_pixels(kind):
    assert (seen(kind) == seen(kind)).all()


@pytest.mark.parametrize("changed", [{"epoch": 2}, {"seed": 1}, {"digest": bytes(32)}])
def test_another_epoch_seed_or_image_gives_another_crop(changed):
    assert (seen("crop") != seen("crop", **changed)).any()


def test_a_flip_mirrors_about_half_of_the_images_and_changes_nothing_else():
    plain = to_pixels(image(), Geometry(37, 32))
    mirrored = [(found[..., ::-1] == plain).all() for found in (seen("flip", epoch=e) for e in range(200))]
    kept = [(found == plain).all() for found in (seen("flip", epoch=e) for e in range(200))]
    assert sum(mirrored) + sum(kept) == 200 and 70 < sum(mirrored) < 130


def test_a_crop_without_flip_is_never_mirrored():
    """Digits and letters: an image whose left is dark stays so in every crop."""
    ramp = Image.fromarray(np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy())
    for kind, mirrored in (("crop", False), ("weights", True)):
        shown = [
            to_pixels(ramp, Geometry(37, 32, augmentation=Augmentation(kind, 0, e)), DIGEST)[0, 0] for e in range(30)
        ]
        assert any(row[0] > row[-1] for row in shown) == mirrored


def test_randaugment_changes_pixels_and_keeps_the_shape():
    found = [seen("flip", epoch=e, randaugment=True) for e in range(20)]
    plain = to_pixels(image(), Geometry(37, 32))
    assert {f.shape for f in found} == {(3, 32, 32)}
    assert sum((f != plain).any() and (f[..., ::-1] != plain).any() for f in found) > 10


@pytest.mark.parametrize("name", sorted(RAND_OPERATIONS))
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_is_torchvisions(name, sign):
    space = RandAugment()._augmentation_space(31, (40, 50))
    magnitudes, signed = space[name]
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    expected = _apply_op(image(), name, sign * magnitude if signed else magnitude, InterpolationMode.NEAREST, None)
    found = RAND_OPERATIONS[name](image(), sign * STRENGTH)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= (2 if name != "Rotate" else 0)
