"""A small prior on a locked space: what is landed near real latents is taken to mean one of them.

A landing is a guess, and lies off what a generator knows. The contrastive loss has learned more than that guess: with
cosine / temperature as logits, the softmax over real latents is the probability that each is the partner (exactly so
for an optimal critic, arXiv 1807.03748, section 2.3). The mean of real latents under it lies among real ones, and is
the guess with the least squared error if these are all there are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def posterior_mean(landed: Tensor, known: Tensor, temperature: Tensor) -> Tensor:
    """Return the mean of real latents, each weighted by the probability that it is what a landing means.

    Args:
        landed: (B, S), floating point, of whatever length: only their directions count.
        known: (M, S): real latents of the locked space, drawn as they are there.
        temperature: the learned one, positive.

    Returns:
        (B, S), in the units of the locked space.
    """
    logits = F.normalize(landed, dim=-1) @ F.normalize(known, dim=-1).T / temperature
    return torch.softmax(logits, dim=-1) @ known
