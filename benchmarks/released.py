"""The peer of the training benchmarks: the released recipe (layer6ai-labs/fusemix), written anew from its description.

What costs time is kept as it was: latents as float32 tensors in dicts, fetched one by one in Python and collated; a
draw of noise that is multiplied by zero; two B x B products where one would do; the default AdamW; float32. One thing
is kinder to the peer: the loss is read once an epoch, so that no step waits for the device.

    config = fusemix.config.paper(seed=0)
    model, history = fit(dataset(x, y, rows), None, config, torch.device("cpu"))
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fusemix.config import FitConfig

MIN_LR = 1e-6
NOISE = 0.0  # of the released run
CUTOFFS = (1, 5, 10)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of latents, each of which is a tensor of its own under its key."""

    def __init__(self, x: dict[str, Tensor], y: dict[str, Tensor], rows: list[tuple[int, int]]) -> None:
        self.x, self.y, self.rows = x, y, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the latents (Dx,) and (Dy,) of one pair."""
        row_x, row_y = self.rows[index]
        x, y = self.x[str(row_x)], self.y[str(row_y)]
        return x + NOISE * torch.rand_like(x), y + NOISE * torch.rand_like(y)


def dataset(x: Tensor, y: Tensor, rows: tuple[Tensor, Tensor]) -> Pairs:
    """Take apart what `fusemix` keeps together.

    Args:
        x: (n, Dx) latents of the distinct items of one modality.
        y: (m, Dy) of the other.
        rows: two times (N,), the items of each pair.
    """
    items_x, items_y = ({str(i): row for i, row in enumerate(latents.float())} for latents in (x, y))
    return Pairs(items_x, items_y, list(zip(rows[0].tolist(), rows[1].tolist(), strict=True)))


def loader(pairs: Pairs, config: FitConfig) -> DataLoader[tuple[Tensor, Tensor]]:
    """Deal the pairs in random order, 2B at a time with mixing; what does not fill a batch is dropped.

    Without workers: on few cores they cost more than they bring (0.4 to 0.6 times the pairs per second).
    """
    return DataLoader(
        pairs, config.batch_size * (2 if config.alpha > 0 else 1), shuffle=True, drop_last=True, num_workers=0,
        generator=torch.Generator().manual_seed(config.seed),
    )  # fmt: skip


class Block(nn.Module):
    """A residual inverted bottleneck after its LayerNorm."""

    def __init__(self, width: int, config: FitConfig) -> None:
        super().__init__()
        inner = config.expansion * width
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(inner, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return x + self.mlp(self.norm(x))


def _layers(dim: int, config: FitConfig) -> Iterator[nn.Module]:
    """An adapter for latents of `dim` numbers."""
    width = config.block_width(dim)
    if width < dim:
        yield nn.Linear(dim, width)
    yield from (Block(width, config) for _ in range(config.depth))
    yield nn.LayerNorm(width)
    yield nn.Linear(width, config.dim)


class Model(nn.Module):
    """Both adapters and the temperature; mixes when it trains."""

    def __init__(self, dim_x: int, dim_y: int, config: FitConfig) -> None:
        super().__init__()
        self.x, self.y = (nn.Sequential(*_layers(dim, config)) for dim in (dim_x, dim_y))
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.alpha = config.alpha

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Latents (2B, Dx) and (2B, Dy), or B of each without mixing -> the loss."""
        if self.alpha > 0:
            lam = float(np.random.beta(self.alpha, self.alpha))  # noqa: NPY002 - the global state, as released
            x, y = (lam * first + (1 - lam) * second for first, second in (x.chunk(2), y.chunk(2)))
        return loss(F.normalize(self.x(x), dim=-1), F.normalize(self.y(y), dim=-1), self.temperature)


def loss(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE of embeddings (B, S) and (B, S), with a product for each direction."""
    labels = torch.arange(len(x), device=x.device)
    x_to_y, y_to_x = x @ y.T / temperature, y @ x.T / temperature
    return (F.cross_entropy(x_to_y, labels) + F.cross_entropy(y_to_x, labels)) / 2


def adamw(model: Model, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW as torch has it by default, with decay on matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999))


def train_step(model: Model, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step on latents (2B, Dx) and (2B, Dy) of the device; return the loss."""
    value: Tensor = model(x, y)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    with torch.no_grad():
        model.temperature.clamp_(0.001, 0.5)
    return value.detach()


def learning_rate(config: FitConfig, epoch: int, step: int) -> float:
    """A linear warm-up by step inside the first epoch, then a cosine that is set once an epoch; epochs from 0."""
    if epoch == 0:
        share = min(1.0, step / max(1, config.warmup_steps))
    else:
        share = (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    return MIN_LR + (config.lr - MIN_LR) * share


def fit(
    train: Pairs, val: Pairs | None, config: FitConfig, device: torch.device
) -> tuple[Model, list[dict[str, float]]]:
    """Train for all epochs; return the model with its best weights, and a record per epoch: epoch, loss, lr, val.

    Args:
        train: at least one batch of pairs.
        val: pairs that choose the epoch, by `validate` after each; None keeps the last.
        config: what of it the released recipe knows; latents are neither standardised nor dropped.
        device: where to train.
    """
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002
    x, y = train[0]
    model = Model(len(x), len(y), config).to(device)
    optimizer, batches = adamw(model, config), loader(train, config)
    history: list[dict[str, float]] = []
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    for epoch in range(config.epochs):
        model.train()
        losses = list(epoch_steps(model, optimizer, batches, config, epoch))
        record = {"epoch": epoch + 1.0, "loss": float(torch.stack(losses).mean())}
        record["lr"] = learning_rate(config, epoch, len(losses) - 1)
        history.append(record)
        if val is not None:
            record["val"] = validate(model, val)
            if record["val"] > best[0]:
                best = record["val"], {name: value.clone() for name, value in model.state_dict().items()}
    if best[1]:
        model.load_state_dict(best[1])
    return model.eval(), history


def epoch_steps(
    model: Model,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader[tuple[Tensor, Tensor]],
    config: FitConfig,
    epoch: int,
) -> Iterator[Tensor]:
    """Take the steps of an epoch, counted from 0; yield their losses."""
    for step, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch, step)
        yield train_step(model, optimizer, x.to(model.temperature.device), y.to(model.temperature.device))


@torch.inference_mode()
def validate(model: Model, val: Pairs) -> float:
    """Mean of R@1, R@5 and R@10 both ways, in percent: every item asks once, and any of its partners is a hit.

    From the whole matrix of scores, sorted row by row.
    """
    model.eval()
    device = model.temperature.device
    rows = np.array(val.rows)
    (kept_x, rows_x), (kept_y, rows_y) = (np.unique(rows[:, side], return_inverse=True) for side in (0, 1))
    x = F.normalize(model.x(torch.stack([val.x[str(i)] for i in kept_x]).to(device)), dim=-1)
    y = F.normalize(model.y(torch.stack([val.y[str(i)] for i in kept_y]).to(device)), dim=-1)
    scores = (x @ y.T).cpu().numpy()
    ways = _recalls(scores, rows_x, rows_y), _recalls(scores.T, rows_y, rows_x)
    return float(np.mean(ways))


def _recalls(scores: NDArray[Any], queries: NDArray[Any], answers: NDArray[Any]) -> list[float]:
    """Recall at each cutoff of score rows (queries, items), for pairs of a query and its answer."""
    wanted: dict[int, set[int]] = {}
    for query, answer in zip(queries.tolist(), answers.tolist(), strict=True):
        wanted.setdefault(query, set()).add(answer)
    ranks = []
    for query, row in enumerate(scores):
        order = np.argsort(row)[::-1].tolist()
        ranks.append(next(rank for rank, item in enumerate(order) if item in wanted[query]))
    return [100 * float(np.mean(np.array(ranks) < k)) for k in CUTOFFS]
