"""The baseline is SAM itself: equal to segment-anything's own modules on the real MobileSAM checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from MaskSAMCore.errors import InputError, PromptError
from MaskSAMCore.inference.zeroshot import ZeroShot, grey_values, picture
from MaskSAMCore.network.mobile import MobileImageEncoder, map_mobile_keys

SIZE = (60, 44)
"""Neither square nor a divisor of 1024: the enlarged slice is padded on the right."""


class Vanilla(nn.Module):
    """timm's own forward and SAM's neck."""

    img_size = 1024

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tiny = MobileImageEncoder()
        prefix = "image_encoder."
        mapped = map_mobile_keys(state)
        self.tiny.load_state_dict({k.removeprefix(prefix): v for k, v in mapped.items() if k.startswith(prefix)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tiny.neck(self.tiny.stages(self.tiny.patch_embed(x)))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright disc in a textured, darker picture, off the diagonal; 8 bit."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (y - 40) ** 2 + (x - 14) ** 2 <= 81
    noise = np.random.default_rng(0).normal(0, 6, SIZE)
    return np.clip(np.where(disc, 190, 70) + noise, 0, 255).astype(np.uint8), disc


@pytest.fixture(scope="module")
def original(mobile_sam: Path):
    """Segment-anything's predictor with its own decoder and prompt encoder, loaded without any of our code."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    state = torch.load(mobile_sam, weights_only=True)
    sam = Sam(
        Vanilla(state),
        PromptEncoder(embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        ),
    ).eval()
    for part in ("prompt_encoder", "mask_decoder"):
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        getattr(sam, part).load_state_dict(own, strict=True)
    predictor = SamPredictor(sam)
    predictor.set_image(np.repeat(scene()[0][..., None], 3, axis=2))
    return predictor


@pytest.fixture(scope="module")
def ours(mobile_sam: Path) -> ZeroShot:
    sam = ZeroShot("mobile", mobile_sam)
    sam.set_image(scene()[0])
    return sam


# In SAM's own coordinates: pixels by their number, boxes with both ends included.
PROMPTS = {
    "one click": {"point_coords": [[14, 40]], "point_labels": [1]},
    "two clicks": {"point_coords": [[14, 40], [30.5, 12]], "point_labels": [1, 0]},
    "box": {"box": [4, 30, 24, 50]},
    "box and click": {"box": [4, 30, 24, 50], "point_coords": [[9, 41]], "point_labels": [0]},
}


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_are_those_of_an_unchanged_sam(original, ours, kind, again, multimask):
    given = {key: np.array(value, float) for key, value in PROMPTS[kind].items()}
    earlier = np.random.default_rng(1).normal(0, 3, (1, 256, 256)).astype(np.float32) if again else None
    logits, quality, low = original.predict(**given, mask_input=earlier, multimask_output=multimask, return_logits=True)
    # A pixel of the enlarged slice; SAM means the middle of one, we count from the slice's corner.
    pixel = np.array([SIZE[1] / original.input_size[1], SIZE[0] / original.input_size[0]])
    answer = ours.predict(
        given["point_coords"] + pixel / 2 if "point_coords" in given else None,
        given.get("point_labels"),
        given["box"] + [0, 0, *pixel] if "box" in given else None,
        earlier[0] if again else None,
        multimask=multimask,
    )
    assert answer.logits.shape == logits.shape == (3 if multimask else 1, *SIZE)
    # MobileSAM's logits reach some tens; the encoder's fast kernel differs in the last places.
    np.testing.assert_allclose(answer.low_res, low, atol=2e-3)
    np.testing.assert_allclose(answer.logits, logits, atol=2e-3)
    np.testing.assert_allclose(answer.quality, quality, atol=1e-4)


@pytest.mark.slow
def test_a_click_and_a_box_find_the_disc_and_no_other_place(ours):
    _, disc = scene()
    for prompt in (
        {"points": np.array([[14.5, 40.5]]), "labels": np.array([1])},
        {"box": np.array([5, 31, 24, 50])},
    ):
        found = ours.predict(**prompt).logits[0] > 0
        assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.9
    assert ours.predict(np.array([[14.5, 40.5]]), np.array([1]), multimask=True).best in (0, 1, 2)


@pytest.fixture(scope="module")
def random_sam() -> ZeroShot:
    return ZeroShot("tiny", None)


@pytest.mark.slow
def test_what_cannot_be_answered_is_named(random_sam):
    with pytest.raises(InputError, match="no slice was set"):
        random_sam.predict(box=np.array([0, 0, 1, 1]))
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(InputError, match="8-bit"):
            random_sam.set_image(wrong)
    random_sam.set_image(np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(PromptError, match="no prompt"):
        random_sam.predict()
    with pytest.raises(PromptError, match="label"):
        random_sam.predict(np.zeros((2, 2)), np.ones(1))


def test_pictures_show_the_scan_between_its_percentiles():
    values = np.random.default_rng(0).uniform(-100, 300, (4, 30, 30)).astype(np.float32)
    values[0, 0, :3] = [np.nan, np.inf, -np.inf]
    low, high = grey_values(values)
    assert -100 < low < -90
    assert 290 < high < 300
    shown = picture(values[0], low, high)
    assert shown.dtype == np.uint8
    assert shown.min() == 0
    assert shown.max() == 255
    assert shown[0, 0] == 0
    assert shown[0, 1] == 255
    assert shown[0, 2] == 0
    assert picture(np.array([[(low + high) / 2]]), low, high)[0, 0] in (127, 128)
    for empty in (np.full((2, 3, 3), np.nan), np.full((2, 3, 3), 7.0)):
        assert picture(empty[0], *grey_values(empty)).max() == 0
