"""The contrastive loss (arXiv 2312.10144, section 4; the symmetric InfoNCE of CLIP, arXiv 2103.00020)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(x: Tensor, y: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE: row i of x belongs to row i of y, all other rows of the batch are negatives.

    Args:
        x: (B, S) embeddings, unit norm.
        y: (B, S) embeddings, unit norm.
        temperature: positive scalar; logits = cosine / temperature.

    Returns:
        Scalar: mean over the batch and over both directions of -log softmax of the matching logit. At least 0;
        log(B) when every logit is equal.
    """
    # One product serves both directions: the logits of y -> x are the transpose.
    logits = x @ y.T / temperature  # (B, B)
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
