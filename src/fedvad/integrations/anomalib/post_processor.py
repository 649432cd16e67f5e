"""Decisions in anomalib by a threshold from normal images only."""

from __future__ import annotations

from typing import Any

import torch
from anomalib.post_processing import PostProcessor


class NormalOnlyPostProcessor(PostProcessor):  # type: ignore[misc]
    """anomalib's post-processor without its search for the threshold of the best F1 score.

    That one needs labelled anomalies, and often sees those of the test set. Here the model sets a
    threshold t of its own, and a score s, of an image or of a pixel, is shown as s / (s + t): 0.5
    at the threshold, below 1 always, and in the order of the raw scores, which anomalib's clamped
    range would not keep. Without a threshold raw scores are shown and no label is given. Ours.
    """

    def set_threshold(self, value: float) -> None:
        """Decide by raw score > `value`, for images and for pixels of their maps alike."""
        self._image_threshold.fill_(value)
        self._pixel_threshold.fill_(value)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: labels of validation images are not looked at."""

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: see `on_validation_batch_end`."""

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        if preds is None:
            return None
        return torch.where(torch.isnan(threshold), preds, preds / (preds + threshold))
