"""Labels of sequences: what each row of logits ``(n, tokens, classes)`` predicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.network.batches import Forward, is_encoder_decoder
from ..errors import CalibrationError

__all__ = ["IGNORED", "check_causal", "predicted", "rows", "token_labels"]

IGNORED = -100  # of labels that do not count, as in PyTorch
_SLICE = 1 << 22  # logits copied at a time: 32 MiB in float64
_PROBED = 16  # tokens of the sample that shows whether a network is causal


def token_labels(batch: Any) -> Tensor | None:
    """Return the labels of tokens, int64 (n, tokens), of a batch that has some, or None."""
    labels: Any = None
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        labels = batch[-1]
    return labels.long() if _is_of_tokens(labels) else None


def predicted(model: nn.Module, batch: Any) -> tuple[Tensor, bool] | None:
    """Return what the logits of a batch predict, int64 (n, tokens), and if inputs were shifted.

    Labels of the batch are taken as they are; those of a network that is not an encoder-decoder are
    shifted by one where they equal ``input_ids`` wherever they count, as is the custom for language
    models. Without labels, every token predicts the next one, except from or to padding. Labels
    that do not count are ``IGNORED``. None if there are neither labels nor tokens.
    """
    labels, tokens = token_labels(batch), _tokens(batch)
    if labels is not None:
        same = tokens is not None and tokens.shape == labels.shape
        if not same or is_encoder_decoder(model):
            return labels, False
        counts = labels != IGNORED
        if not torch.equal(labels[counts], tokens[counts].to(labels)):  # type: ignore[index]
            return labels, False
        return _shifted(labels), False
    if tokens is None:
        return None
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    targets = _shifted(tokens.long())
    if isinstance(mask, Tensor) and mask.shape == tokens.shape:
        real = mask.bool()
        both = torch.zeros_like(real)
        both[:, :-1] = real[:, :-1] & real[:, 1:]
        targets = targets.masked_fill(~both, IGNORED)
    return targets, True


def rows(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float logits (n, classes) and labels (n,) of the tokens that count, in small parts.

    Logits are copied for at most 4 million values at a time, in float32 if they are narrower.
    """
    step = max(1, _SLICE // max(1, logits.shape[-1]))
    for sample, wanted in zip(logits, labels, strict=True):
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            counts = part != IGNORED
            if counts.any():
                chosen = sample[start : start + step][counts]
                yield chosen if chosen.dtype == torch.float64 else chosen.float(), part[counts]


def check_causal(forward: Forward, model: nn.Module, batch: Any) -> None:
    """Check, on some tokens of one sample, that logits do not depend on tokens after them.

    Otherwise they see the token that they are said to predict, and the result means nothing.

    Raises:
        CalibrationError: they do.
    """
    tokens = _tokens(batch)
    if tokens is None or tokens.shape[1] < 2:
        return
    short = tokens[:1, :_PROBED]
    other = short.clone()
    other[0, -1] = short[0, 0] if short[0, 0] != short[0, -1] else (short[0, -1] - 1).abs()
    one, two = (
        _logits(forward(model, {"input_ids": ids} if isinstance(batch, Mapping) else ids))
        for ids in (short, other)
    )
    if one.shape != two.shape or one.dim() != 3:
        return
    before, after = one[0, :-1].float(), two[0, :-1].float()
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-2 * float(before.abs().max())):
        raise CalibrationError(
            "the network's logits depend on later tokens, as those of an encoder do, so they "
            "cannot be scored on predicting the next one. Give batches with 'labels' (n, tokens), "
            "-100 where nothing counts, or name a metric of your own: --metric module:callable."
        )


def _logits(result: Any) -> Tensor:
    found = result.get("logits") if isinstance(result, Mapping) else result
    found = getattr(found, "logits", found)
    return found if isinstance(found, Tensor) else torch.zeros(())


def _shifted(tokens: Tensor) -> Tensor:
    """Return what each token is followed by; nothing follows the last."""
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    return targets


def _tokens(batch: Any) -> Tensor | None:
    """Return the numbers of the input tokens, (n, tokens), of a dict, a tuple or a tensor."""
    found: Any = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    return found if _is_of_tokens(found) else None


def _is_of_tokens(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()
