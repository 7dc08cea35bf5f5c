"""A source of prompts is one class and one entry of the table: the worked example of CONTRIBUTING.md."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import DecoderConfig, LossConfig, ModelConfig, SourceConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.build import build_model, check_network
from MaskSAMCore.network.prompt_source import PromptSource, Proposal
from MaskSAMCore.network.sources import SOURCES, Source
from MaskSAMCore.network.types import Features, Level, PromptBatch


class LearnedPlaces(PromptSource):
    """One box per class, learned, the same in every scan and slice."""

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(cfg, levels)
        self.corners = nn.Parameter(torch.zeros(cfg.classes, 2, 2))

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        low, share = self.corners.sigmoid().unbind(1)
        boxes = torch.cat([low, low + (1 - low) * share], dim=-1)
        boxes = boxes[None, :, None].expand(len(features.embed), -1, features.depth, -1)
        return Proposal(prompts=PromptBatch(boxes=boxes, complete=True))


@pytest.fixture
def cfg(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    monkeypatch.setitem(SOURCES, "places", Source(build=LearnedPlaces, heads=("softmax",), losses=("segmentation",)))
    return replace(
        presets.get("tiny").model,
        source=SourceConfig(kind="places"),
        decoder=DecoderConfig(class_head=False),
        head="softmax",
        loss=LossConfig(kind="segmentation"),
    )


def test_it_is_trained_segments_and_leaves_clicks_as_they_are(cfg: ModelConfig) -> None:
    model = build_model(cfg)
    image, labels = torch.randn(1, 1, *cfg.patch), torch.randint(3, (1, *cfg.patch))
    build_loss(cfg)(model(image, None, labels), labels, None)["loss"].backward()
    assert model.generator.corners.grad.any()
    with torch.no_grad():
        scores, slab = model.eval().segment_slab(image)
        torch.testing.assert_close(scores.sum(1), torch.ones(1, *cfg.patch))
        point = PromptBatch(points=torch.full((1, 1, 4, 1, 2), 0.5), labels=torch.ones(1, 1, 4, 1, dtype=torch.long))
        assert model.prompted(slab, point).masks.shape == (1, 1, 4, 1, 16, 16)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"head": "multiclass"}, "model.head"),
        ({"loss": LossConfig()}, "model.loss.kind"),
        ({"decoder": DecoderConfig(kind="none")}, "model.decoder.kind"),
        ({"decoder": DecoderConfig(fine_masks=True)}, "model.decoder.fine_masks"),
        ({"backbone": presets.get("swin-tiny").model.backbone}, "model.source.kind"),
    ],
)
def test_what_its_entry_does_not_name_is_refused(cfg: ModelConfig, changes: dict[str, object], where: str) -> None:
    check_network(cfg)
    with pytest.raises(InputError) as caught:
        check_network(replace(cfg, **changes))
    assert caught.value.where == where
    assert caught.value.remedy
