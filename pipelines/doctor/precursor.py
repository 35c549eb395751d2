"""The precursor: a tiny regression that tests the machinery of training before a long run.

A conv net of 2,497 parameters learns each photo's mean lightness in a second or two. The model
cannot be at fault, so a failure points to the infrastructure. Each proof runs a piece of real
training code (loader, transfer, autocast, AdamW, checkpoint files, DDP) and compares its result
with one obtained another way.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from colorcore.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from colorcore.checkpoints.optimizer_state import optimizer_state, restore_optimizer
from colorcore.color.lab import L_MAX, decode_lab, normalize_L
from colorcore.color.palette import Palette
from colorcore.dataset.loader import Batch, TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import load_recipe
from colorcore.step.precision import autocast

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.storage.store import Store

PHOTOS = 512
"""Samples to learn from: the first shards of the dataset that hold as many, or all."""
BATCH = 16
STEPS = 100
SEEN = 32
LR = 5e-3
SEED = 0
LEARNED = 0.5
"""Largest accepted error after ``STEPS`` steps, as a share of the error of a constant answer."""
RESUMED_AFTER, RESUMED_FOR = (7, 6), 8
"""Steps before the resume (the first choice that is not at an epoch's end), and after it."""
STEPS_TOGETHER = 8
RANK_TOLERANCE = 1e-4
"""Largest accepted difference of a weight. Rounding causes about 1e-7, and ranks that don't
exchange gradients about 1e-2."""
BF16_TOLERANCE = 0.03
"""In L_norm. With bf16's 8 bits, rounding a value near 1 once costs up to 0.004."""
GPU_TOLERANCE = 1e-3
RANKS_ANSWER_S = 120.0
Proof = tuple[str, Callable[[], str]]
"""A name, and a function (``prove_*``) that returns one line on success or raises ProofError."""


class ProofError(Exception):
    """A piece of training does not work: what was found, and what to do next."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}")
        self.found, self.advice = found, advice


class Regressor(nn.Module):
    """L_norm (B, 1, H, W) -> its mean over each photo (B,), after training."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.late = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.answer = nn.Linear(16, 1)

    def forward(self, L_norm: Tensor) -> Tensor:
        """Two convolutions on the photo at ``SEEN`` pixels, a mean and a linear layer."""
        small = F.adaptive_avg_pool2d(L_norm, SEEN)
        x = F.relu(self.late(F.relu(self.early(small))))
        answer: Tensor = self.answer(x.mean((-2, -1)))[:, 0]
        return answer.float()


class Precursor:
    """One training of the regression; every instance has the same data, order and weights.

    It runs in fp32 unless ``precision`` says otherwise: proofs compare trainings with each other,
    and AdamW turns bf16's rounding of a gradient near zero into a whole step.
    """

    def __init__(
        self,
        samples: Samples,
        device: torch.device | str = "cpu",
        *,
        precision: str = "fp32",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.device, self.precision = torch.device(device), precision
        torch.manual_seed(SEED)
        self.model = Regressor().to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR)
        self.loader = TrainLoader(samples, batch_size(samples), seed=SEED, rank=rank, world=world)
        self.network: nn.Module = self.model
        self.done = 0

    def train(self, steps: int) -> list[float]:
        """Take some steps and return their losses (mean squared errors in L_norm)."""
        with contextlib.closing(self._batches()) as batches:
            return [self._step(batch) for batch in islice(batches, steps)]

    def predict(self, lab_u8: Tensor) -> Tensor:
        """Answers for stored photos (B, 3, H, W) uint8 -> (B,) on the CPU."""
        with torch.no_grad(), autocast(self.device, self.precision):
            answers: Tensor = self.network(lightness(lab_u8, self.device))
        return answers.cpu()

    def weights(self) -> dict[str, Tensor]:
        """All weights, copied to the CPU."""
        return {f"model.{k}": v.cpu().clone() for k, v in self.model.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """All weights and optimizer tensors, copied to the CPU."""
        tensors, _ = optimizer_state(self.optimizer)
        return self.weights() | {k: v.detach().cpu().clone() for k, v in tensors.items()}

    def save(self, folder: Path) -> None:
        """Write a checkpoint as training does, with a placeholder recipe and palette."""
        _, numbers = optimizer_state(self.optimizer)
        epoch, step = divmod(self.done, len(self.loader))
        quarters = np.full(4, 0.25, np.float32)
        corners = np.array([[-50, -50], [-50, 50], [50, -50], [50, 50]], np.float32)
        checkpoint = Checkpoint(
            recipe=load_recipe("simple"),
            weights=self.model.state_dict(),
            palette=Palette(corners, quarters, 4 * quarters),
            mean_ab=(0.0, 0.0),
            size=1,
            dataset="precursor",
            epoch=epoch,
            step=step,
            training=self.state(),
            optimizer=numbers,
        )
        save_checkpoint(checkpoint, folder)

    def restore(self, folder: Path) -> None:
        """Continue from the state that :meth:`save` wrote."""
        checkpoint = load_checkpoint(folder, training=True)
        self.model.load_state_dict(checkpoint.weights)
        restore_optimizer(self.optimizer, checkpoint)
        self.done = checkpoint.epoch * len(self.loader) + checkpoint.step

    def _batches(self) -> Generator[Batch]:
        epoch, start = divmod(self.done, len(self.loader))
        while True:
            yield from self.loader.epoch(epoch, start_step=start)
            epoch, start = epoch + 1, 0

    def _step(self, batch: Batch) -> float:
        L_norm = lightness(batch.lab_u8, self.device)
        with autocast(self.device, self.precision):
            answers = self.network(L_norm)
        loss = F.mse_loss(answers, L_norm.mean((1, 2, 3)))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss.item()


def open_samples(dataset: str | Path | Store) -> Samples:
    """The samples that the precursor learns from.

    Raises:
        DatasetError, StorageError: as :class:`~colorcore.dataset.samples.Samples`.
    """
    return Samples(dataset, "train").first(PHOTOS)


def batch_size(samples: Samples) -> int:
    """``BATCH``, or a quarter of few samples; even, so that two ranks can share a batch."""
    return min(BATCH, max(2, len(samples) // 8 * 2))


def lightness(lab_u8: Tensor, device: torch.device) -> Tensor:
    """Stored photos (B, 3, H, W) uint8 -> L_norm (B, 1, H, W) on the device."""
    return normalize_L(decode_lab(_to(lab_u8, device))[:, :1])


def _to(lab_u8: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":  # through pinned memory, as in training
        return lab_u8.pin_memory().to(device, non_blocking=True)
    return lab_u8.to(device)


def proofs(
    dataset: Store, device: torch.device | str, folder: Path, *, ranks: bool = True
) -> list[Proof]:
    """All proofs on a dataset's samples; each assumes that those before it hold.

    ``folder`` takes checkpoints. ``ranks=False`` leaves out DDP, which starts processes.

    Raises:
        DatasetError, StorageError: the samples cannot be opened.
        ProofError: there are too few samples.
    """
    place, samples = torch.device(device), open_samples(dataset)
    found = f"expected at least 2 training samples, found {len(samples)}"
    _require(len(samples) >= 2, found, "shard more photos")
    wanted: list[Proof] = [
        ("batching", lambda: prove_batching(samples)),
        ("transfer", lambda: prove_transfer(samples, place)),
        ("learning", lambda: prove_learning(samples, place)),
        ("mixed precision", lambda: prove_mixed_precision(samples, place)),
        ("checkpoint", lambda: prove_checkpoint(samples, place, folder)),
        ("resume", lambda: prove_resume(samples, place, folder)),
    ]
    if ranks:
        wanted.append(("DDP, gloo", lambda: prove_ranks(dataset, folder, "gloo")))
        if place.type == "cuda" and torch.cuda.device_count() > 1:
            wanted.append(("DDP, NCCL", lambda: prove_ranks(dataset, folder, "nccl")))
    return wanted


def _require(holds: bool, found: str, advice: str) -> None:
    if not holds:
        raise ProofError(found, advice)


def prove_batching(samples: Samples) -> str:
    """An epoch has no photo twice, and the shares of two ranks add up to its batches."""
    size = batch_size(samples)
    whole = TrainLoader(samples, size, seed=SEED)
    halves = [TrainLoader(samples, size, seed=SEED, rank=rank, world=2) for rank in range(2)]
    steps = min(8, len(whole))
    advice = "this is a bug of the loader; report it with the dataset's dataset.json"
    seen = np.concatenate([whole.positions(0, step) for step in range(steps)])
    different = len(np.unique(seen))
    found = f"expected {steps * size} different photos in {steps} batches, found {different}"
    _require(different == steps * size, found, advice)
    for step in range(steps):
        shares = np.concatenate([half.positions(0, step) for half in halves])
        same = sorted(shares) == sorted(whole.positions(0, step))
        _require(same, f"the shares of two ranks do not add up to batch {step}", advice)
    return f"{steps} batches of {size} at {samples.size} px, the same for one and two ranks"


def prove_transfer(samples: Samples, device: torch.device) -> str:
    """Photos reach the device unchanged."""
    lab_u8 = samples.read(np.arange(batch_size(samples)))
    advice = "test the GPU's memory and its driver (nvidia-smi -q)"
    unchanged = torch.equal(_to(lab_u8, device).cpu(), lab_u8)
    _require(unchanged, f"photos came back from {device} with other bytes", advice)
    expected = lab_u8[:, 0].numpy().astype(np.float64).mean((1, 2)) * (2 / 255) - 1
    off = float(np.abs(lightness(lab_u8, device).mean((1, 2, 3)).cpu().numpy() - expected).max())
    _require(off <= 1e-4, f"mean lightness on {device} is off by {off:.3g} of 2", advice)
    return f"{lab_u8.nbytes / 1e6:.1f} MB to {device} and back; mean lightness as in NumPy"


def prove_learning(samples: Samples, device: torch.device) -> str:
    """The regression learns: its error ends well below that of a constant answer."""
    precursor, started = Precursor(samples, device, precision="auto"), time.perf_counter()
    losses = precursor.train(STEPS)
    seconds = time.perf_counter() - started
    lab_u8 = samples.read(np.arange(min(len(samples), 8 * BATCH)))
    truth = lab_u8[:, 0].float().mean((1, 2)) * (2 / 255) - 1
    error, constant = _rms_L(precursor.predict(lab_u8) - truth), _rms_L(truth - truth.mean())
    limit = max(LEARNED * constant, 1.0)
    _require(
        bool(np.isfinite(losses).all()) and error <= limit,
        f"after {STEPS} steps the error is {error:.2f} L, expected at most {limit:.2f}; "
        f"a constant answer has {constant:.2f}",
        "see the lines above and below: a conv net that cannot learn a mean is no problem of "
        "the model",
    )
    found = f"mean lightness to {error:.2f} L in {STEPS} steps, {seconds:.1f} s"
    return f"{found}; a constant answer: {constant:.2f} L"


def prove_mixed_precision(samples: Samples, device: torch.device) -> str:
    """Under autocast the convolutions run in bf16, the answers stay close, and it learns."""
    exact, half = (Precursor(samples, device, precision=kind) for kind in ("fp32", "bf16"))
    kinds: list[torch.dtype] = []
    handle = half.model.late.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    lab_u8 = samples.read(np.arange(batch_size(samples)))
    off = float((half.predict(lab_u8) - exact.predict(lab_u8)).abs().max())
    handle.remove()
    losses = half.train(4 * STEPS_TOGETHER)
    first, last = float(np.mean(losses[:4])), float(np.mean(losses[-4:]))
    advice = "train with --set train.precision=fp32, and check that torch fits the driver"
    found = f"expected convolutions in bf16, they ran in {', '.join(map(str, kinds))}"
    _require(kinds == [torch.bfloat16], found, advice)
    found = f"bf16 answers differ by {off:.3g} from fp32, expected at most {BF16_TOLERANCE}"
    _require(off <= BF16_TOLERANCE, found, advice)
    _require(last < first, f"in bf16 the loss went from {first:.3g} to {last:.3g}", advice)
    return f"bf16 answers within {off:.1g} of fp32, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def prove_checkpoint(samples: Samples, device: torch.device, folder: Path) -> str:
    """A checkpoint is read back bit for bit, optimizer included."""
    written, read = Precursor(samples, device), Precursor(samples, device)
    written.train(STEPS_TOGETHER)
    size = _hand_over(written, read, folder)
    wrong = _differing(written.state(), read.state(), 0.0)
    advice = f"check the disk of {folder} and the installed safetensors"
    _require(not wrong, f"{_some(wrong)} changed in the checkpoint", advice)
    return f"{len(read.state())} tensors, {size / 1e3:.0f} kB, read back bit for bit"


def prove_resume(samples: Samples, device: torch.device, folder: Path) -> str:
    """A training that is stopped and resumed gives the same weights as one that is not.

    Bit for bit on a CPU; within rounding on a GPU, whose convolutions add in any order.
    """
    whole, stopped, resumed = (Precursor(samples, device) for _ in range(3))
    after = next((n for n in RESUMED_AFTER if n % len(whole.loader)), RESUMED_AFTER[0])
    whole.train(after + RESUMED_FOR)
    stopped.train(after)
    _hand_over(stopped, resumed, folder)
    resumed.train(RESUMED_FOR)
    tolerance = GPU_TOLERANCE if device.type == "cuda" else 0.0
    wrong = _differing(whole.state(), resumed.state(), tolerance)
    _require(
        not wrong,
        f"{_some(wrong)} differ from those of a training that never stopped",
        "do not rely on --resume here; report it with the output of cc doctor --json",
    )
    how = f"within {tolerance:g}" if tolerance else "bit for bit"
    return f"after {after} of {whole.done} steps, as if never stopped: {how}"


def _hand_over(stopped: Precursor, resumed: Precursor, folder: Path) -> int:
    """Move a training's state through a checkpoint's files; return their size in bytes."""
    place = folder / "checkpoint"
    stopped.save(place)
    resumed.restore(place)
    size = sum(file.stat().st_size for file in place.iterdir())
    shutil.rmtree(place)
    return size


RankJob = Callable[[int, "Store", Path, str], None]


def prove_ranks(dataset: Store, folder: Path, backend: str, job: RankJob | None = None) -> str:
    """Two processes with half of each batch train the same weights as one with all of it.

    ``job`` replaces :func:`train_rank` in tests, which cannot patch a spawned process.
    """
    from torch.multiprocessing.spawn import ProcessException, start_processes

    place = folder / backend
    place.mkdir(parents=True, exist_ok=True)
    advice = (
        "check that this machine's host name resolves (getent hosts $(hostname)), or name the "
        "network interface in GLOO_SOCKET_IFNAME"
        if backend == "gloo"
        else "rerun with NCCL_DEBUG=INFO, and with NCCL_P2P_DISABLE=1"
    )
    processes = start_processes(
        job or train_rank, (dataset, place, backend), nprocs=2, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + RANKS_ANSWER_S
    try:
        while not processes.join(timeout=1.0):
            late = f"two processes did not end in {RANKS_ANSWER_S:.0f} s"
            _require(time.monotonic() <= deadline, late, advice)
    except ProcessException as error:
        last = str(error).strip().splitlines()[-1]
        raise ProofError(f"two processes over {backend} failed: {last}", advice) from error
    finally:
        for process in processes.processes:
            process.kill()
    ranks = [load_file(place / f"{rank}.safetensors") for rank in range(2)]
    wrong = _differing(ranks[0], ranks[1], 0.0)
    _require(not wrong, f"{_some(wrong)} differ between the ranks", advice)
    alone = Precursor(open_samples(dataset), _rank_device(0, backend))
    alone.train(STEPS_TOGETHER)
    tolerance = RANK_TOLERANCE if backend == "gloo" else GPU_TOLERANCE
    wrong = _differing(alone.weights(), ranks[0], tolerance)
    _require(not wrong, f"{_some(wrong)} differ from those of one process", advice)
    return f"two processes, {STEPS_TOGETHER} steps: same weights as one, within {tolerance:g}"


def train_rank(rank: int, dataset: Store, folder: Path, backend: str) -> None:
    """Train one of two ranks for a few steps and write its weights into ``folder``."""
    device = _rank_device(rank, backend)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    distributed.init_process_group(
        backend, init_method=(folder / "meeting").absolute().as_uri(), rank=rank, world_size=2
    )
    precursor = Precursor(open_samples(dataset), device, rank=rank, world=2)
    ids = [device.index] if device.type == "cuda" else None
    precursor.network = DistributedDataParallel(precursor.model, device_ids=ids)
    precursor.train(STEPS_TOGETHER)
    save_file(precursor.weights(), folder / f"{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


def _rank_device(rank: int, backend: str) -> torch.device:
    return torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")


def _differing(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> list[str]:
    """Names of tensors that are missing on one side or differ by more than the tolerance."""
    return sorted(one.keys() ^ other.keys()) + [
        name
        for name in sorted(one.keys() & other.keys())
        if not torch.allclose(one[name], other[name], rtol=0, atol=tolerance)
    ]


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"


def _rms_L(difference: Tensor) -> float:
    """Root mean square of differences in L_norm, converted to L (0 to 100)."""
    return float(difference.square().mean().sqrt()) * L_MAX / 2
