"""Validation during training: Dice on the prepared grid, figures of simulated users, overlays."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from MaskSAMCore.config.schema import Config, Largest
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.preprocessing.postprocess import MODES, choose_largest, keep_largest
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training.prompted import click_dice

Predict = Callable[..., Tensor]
"""A network and a prepared image (M, D, H, W) to scores (K, D, H, W): `inference.sliding_window.slide_model`."""
OVERLAYS = 4
"""Number of cases that are drawn."""


class GivenLabels(nn.Module):
    """A model with prompts from the ground truth, its last input channel being the labels."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.cfg = model, model.cfg

    def segment_patch(self, patch: Tensor) -> Tensor:
        """Patch (B, M + 1, D, H, W) to class scores (B, K, D, H, W)."""
        labels = patch[:, -1].round().long()
        return self.model.scores(self.model(patch[:, :-1], None, labels))


class Validation:
    """Validates a model on cases of its data set.

    Args:
        dataset: Prepared.
        cases: The validation cases; none give no figures.
        config: Of the run.
        overlays: Folder for pictures of the first few cases.
        predict: The sliding window; injected, since training does not import inference.
        log: Called with lines of text for the user.
        progress: Called after every case.
        cancel: Checked before every case.

    Attributes:
        largest: Which structures were best cut down to their largest component, at the last validation.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        cases: Sequence[str],
        config: Config,
        *,
        overlays: Path,
        predict: Predict,
        log: Callable[[str], None],
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        most = config.train.validate_cases
        self.dataset, self.config, self.overlays, self.predict = dataset, config, overlays, predict
        self.cases = cases[:most] if most else cases
        self.log, self.progress, self.cancel = log, progress, cancel
        self.largest: Largest = "none"

    def __call__(self, model: Segmenter, epoch: int) -> dict[str, float]:
        """Dice of every structure, on the prepared grid, and "val dice", their mean.

        A model that takes prompts only is validated by simulated users; "val dice" is the mean over their figures.
        """
        found: list[np.ndarray] = []
        clicks: list[dict[str, float]] = []
        for index, case in enumerate(self.cases):
            self.cancel.check()
            ready = self.dataset.case(case)
            image: np.ndarray = np.asarray(ready.image, dtype=np.float32)
            if self.config.train.mode in ("prompt", "mixed") and isinstance(model, MaskSAM):
                padded, labels = (pad_to(a, model.cfg.patch)[0] for a in (image, np.asarray(ready.label)))
                clicks.append(click_dice(model, padded, labels, model.cfg.patch))
            self.progress(index + 1, len(self.cases), "validating")
            if model.cfg.prompts_only:
                continue
            predicted = self._predict(model, image, ready.label)
            found.append(self._dice(predicted, ready.label))
            if index < OVERLAYS:
                self._draw(case, image[0], np.asarray(ready.label), predicted)
        if not self.cases:
            return {}
        if model.cfg.prompts_only:
            return self._figures_of_prompts(clicks, epoch)
        return self._figures(np.array(found), clicks, epoch)

    def _predict(self, model: Segmenter, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        network: nn.Module = model
        if model.cfg.source.kind == "gt":
            # With prompts from the ground truth, the labels travel through the windows as one more channel.
            image = np.concatenate([image, np.asarray(label, np.float32)[None]])
            network = GivenLabels(model)
        classes: np.ndarray = self.predict(network, image).argmax(0).cpu().numpy()
        return classes

    def _dice(self, predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Dice (modes, structures) for every mode of keeping largest components."""
        classes = self.dataset.labels.classes
        return np.array([dice_per_class(keep_largest(predicted, mode), label, classes) for mode in MODES])

    def _figures(self, dice: np.ndarray, clicks: Sequence[dict[str, float]], epoch: int) -> dict[str, float]:
        """Figures of Dice (cases, modes, structures), and of clicks where there were any."""
        names = [label.name for label in self.dataset.labels.labels]
        means = {mode: np.nanmean(dice[:, index], axis=0).tolist() for index, mode in enumerate(MODES)}
        self.largest = choose_largest(means)
        best = means[self.largest]
        figures = {f"val {name}": round(mean, 4) for name, mean in zip(names, best, strict=True)}
        figures["val dice"] = round(float(np.nanmean(best)), 4)
        text = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, best, strict=True))
        kept = "" if self.largest == "none" else f", largest components: {self.largest}"
        self.log(f"epoch {epoch}: Dice {text} on {len(self.cases)} validation case(s), prepared grid{kept}")
        if clicks:
            prompted = click_figures(clicks)
            self.log("  with prompts, in one patch: " + in_words(prompted))
            figures |= prompted
        return figures

    def _figures_of_prompts(self, clicks: Sequence[dict[str, float]], epoch: int) -> dict[str, float]:
        found = click_figures(clicks)
        self.log(f"epoch {epoch}: Dice {in_words(found)} on {len(self.cases)} validation case(s), in one patch")
        return found | ({"val dice": round(float(np.mean(list(found.values()))), 4)} if found else {})

    def _draw(self, case: str, image: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return
        from MaskSAMCore.training.report import save_overlay

        picture = "rgb" in self.dataset.plan.normalisation
        path = self.overlays / f"{case}.png"
        save_overlay(image, reference, predicted, self.dataset.labels, path, picture=picture)


def dice_per_class(predicted: np.ndarray, reference: np.ndarray, classes: int) -> list[float]:
    """Dice of every structure; NaN where neither has it."""
    found = []
    for index in range(1, classes):
        p, r = predicted == index, reference == index
        total = int(p.sum()) + int(r.sum())
        found.append(2 * int((p & r).sum()) / total if total else float("nan"))
    return found


def click_figures(cases: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of `prompted.click_dice` over the cases, each figure over those that have it, named for the log."""
    names = dict.fromkeys(name for each in cases for name in each)
    return {f"val {name}": round(float(np.mean([c[name] for c in cases if name in c])), 4) for name in names}


def in_words(figures: dict[str, float]) -> str:
    """ "click 1 0.8123, box 0.9000"."""
    return ", ".join(f"{name.removeprefix('val ')} {value:.4f}" for name, value in figures.items())
