"""Helpers shared by the benchmarks: sizes, updates to time, interleaved timing, tables."""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_zf import SequenceBatch
from pyro_zf.infer import SVI, TraceMeanField_ELBO
from pyro_zf.models import MODELS, LatentSequenceModel
from pyro_zf.nn.cells import run_rnn

Update = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of a batch."""

    steps: int
    batch: int
    data: int
    hidden: int
    latent: int
    mlp: int
    emission: str = "bernoulli"


SHAPES = {
    "mnist": Shape(784, 32, 1, 128, 32, 128),
    "mnist-row": Shape(28, 64, 28, 256, 32, 256),
    "timit": Shape(40, 32, 200, 1024, 256, 512, "gaussian"),
    "tiny": Shape(256, 4, 1, 4, 4, 4),
}


def random_batch(shape: Shape, device: str = "cpu") -> SequenceBatch:
    """Random bits or normal values; the time of an update does not depend on them."""
    size = (shape.batch, shape.steps, shape.data)
    bits = shape.emission == "bernoulli"
    return SequenceBatch.from_targets((torch.rand(size) > 0.5).float() if bits else torch.randn(size)).to(
        device
    )  # fmt: skip


def make_model(
    shape: Shape, device: str = "cpu", seed: int = 0, system: str = "zforcing", **options: Any
) -> LatentSequenceModel:
    torch.manual_seed(seed)
    model_class: Any = MODELS[system]
    model = model_class(
        shape.data, emission=shape.emission, hidden_size=shape.hidden, latent_size=shape.latent,
        mlp_size=shape.mlp, **options,
    )  # fmt: skip
    assert isinstance(model, LatentSequenceModel)
    return model.to(device)


def svi_of(model: LatentSequenceModel, bf16: bool = False) -> SVI:
    """The SVI of the trainer: analytic KL, gradient clipping, fused Adam."""
    device = next(model.parameters()).device.type
    low = functools.partial(torch.autocast, device, torch.bfloat16)
    optimiser = torch.optim.Adam(
        model.parameters(), lr=1e-3, fused=True, capturable=device == "cuda"
    )
    objective = TraceMeanField_ELBO(max_plate_nesting=1)
    return SVI(
        model.model, model.guide, optimiser, objective, clip_norm=100.0, loss_context=low if bf16 else None
    )  # fmt: skip


def update_of(shape: Shape, bf16: bool = False, device: str = "cpu", **options: Any) -> Update:
    """A function that makes one SVI update of a model."""
    svi = svi_of(make_model(shape, device, **options), bf16)
    batch = random_batch(shape, device)
    return lambda: svi.step(batch)


def update_without_pyro(shape: Shape, **options: Any) -> Update:
    """The same update of the same model without Pyro: the terms of the loss are added up directly."""
    from pyro_zf.sequence import PosteriorPath, PriorPath, Recurrence, kl_per_step

    model = make_model(shape, **options)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batch = random_batch(shape)
    assert batch.targets is not None
    targets = batch.targets

    def update() -> Tensor:
        optimiser.zero_grad()
        run = Recurrence(model, batch)
        q = PosteriorPath(run, "z")
        z = run.latents["z"] = q.rsample()
        kl = kl_per_step(q, PriorPath(run, "z"), z).sum(0)
        log_prob = model.emitted(run.emission_input(), batch).log_prob(targets)
        states = run.step_states()
        aux = model.weighted_aux("b", states).sum(0) + model.weighted_aux("u", states)[1:].sum(0)
        loss = -(log_prob - kl + aux).sum() / shape.batch
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimiser.step()
        return loss.detach()

    return update


class PlainLoop(nn.Module):
    """Z-Forcing as it is commonly written in plain PyTorch, with a loop over the steps.

    This is the peer in the comparison: it does not use Pyro, computes states once, calls every network at
    every step, and stacks lists of results.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, z, m, d = shape.hidden, shape.latent, shape.mlp, shape.data
        out = d if shape.emission == "bernoulli" else 2 * d

        def mlp(size: int, result: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(size, m), nn.LeakyReLU(1 / 3), nn.Hardtanh(-3, 3), nn.Linear(m, result)
            )

        self.shape = shape
        self.backward_lstm = nn.LSTM(d, h)
        self.cell = nn.LSTMCell(d + z, h)
        self.prior, self.posterior = mlp(h, 2 * z), mlp(2 * h, 2 * z)
        self.emission, self.reverse, self.aux = mlp(h, out), mlp(h, out), mlp(z, 2 * h)

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        """The loss in nats per sequence; the first dimension of u and y is time."""
        b = run_rnn(self.backward_lstm, y.flip(0))[0].flip(0)
        h = c = u.new_zeros(u.shape[1], self.shape.hidden)
        terms = []
        for u_t, y_t, b_t in zip(u.unbind(0), y.unbind(0), b.unbind(0), strict=True):
            mu_p, ls_p = self.prior(h).clamp(-8, 8).chunk(2, -1)
            mu_q, ls_q = self.posterior(torch.cat([h, b_t], -1)).clamp(-8, 8).chunk(2, -1)
            z = mu_q + torch.exp(ls_q) * torch.randn_like(mu_q)
            h, c = self.cell(torch.cat([u_t, z], -1), (h, c))
            kl = (
                ls_p - ls_q + (torch.exp(2 * ls_q) + (mu_q - mu_p) ** 2) / (2 * torch.exp(2 * ls_p))
            )
            mu_a, ls_a = self.aux(z).clamp(-8, 8).chunk(2, -1)
            aux = (0.5 * ((b_t.detach() - mu_a) / torch.exp(ls_a)) ** 2 + ls_a).sum(-1)
            nll = self._nll(self.emission(h), y_t) + 0.0025 * self._nll(self.reverse(b_t), u_t)
            terms.append(nll + (kl - 0.5).sum(-1) + 0.0025 * aux)
        return torch.stack(terms).sum(0).mean()

    def _nll(self, output: Tensor, y: Tensor) -> Tensor:
        if self.shape.emission == "bernoulli":
            return F.binary_cross_entropy_with_logits(output, y, reduction="none").sum(-1)
        mean, log_scale = output.chunk(2, -1)
        return (0.5 * ((y - mean) / torch.exp(log_scale)) ** 2 + log_scale).sum(-1)


def plain_update(shape: Shape, device: str = "cpu") -> Update:
    torch.manual_seed(0)
    model = PlainLoop(shape).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batch = random_batch(shape, device)
    assert batch.targets is not None
    u, y = (x.transpose(0, 1).contiguous() for x in (batch.inputs, batch.targets))

    def update() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = model(u, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimiser.step()
        return loss.detach()

    return update


def two_lstms(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Update:
    """The floor: the forward and backward pass of both recurrences as bare ``nn.LSTM`` modules."""
    sizes = (shape.data + shape.latent, shape.data)
    networks = [nn.LSTM(size, shape.hidden).to(device, dtype) for size in sizes]
    rows = (shape.steps, shape.batch)
    inputs = [torch.randn(*rows, size, device=device, dtype=dtype) for size in sizes]
    seed = torch.randn(*rows, shape.hidden, device=device, dtype=dtype)

    def update() -> None:
        states = [f(x)[0] for f, x in zip(networks, inputs, strict=True)]
        torch.autograd.backward(states, [seed, seed])

    return update


def interleaved(variants: dict[str, Update], repetitions: int) -> dict[str, float]:
    """Median CPU seconds of the process for one call of each variant; the variants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 1):  # the first repetition is a warm-up
        for name, update in variants.items():
            start = time.process_time()
            update()
            if repetition > 0:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A text table with aligned columns; the first is left-aligned."""
    texts = [
        [f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in [header, *rows]
    ]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    )  # fmt: skip


def report(name: str, results: dict[str, Any], output: Path | None) -> None:
    """Write the figures to a JSON file, with a description of the machine."""
    if output is None:
        return
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    shapes = {k: asdict(v) for k, v in SHAPES.items()}
    text = json.dumps({"benchmark": name, **machine, "shapes": shapes, **results}, indent=2)
    output.write_text(text + "\n")
