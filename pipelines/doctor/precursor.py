"""The precursor: a tiny regression that proves the machinery before anyone waits for a long run.

A conv net of 2,497 parameters learns each photo's mean lightness, which takes a second or two.
There is nothing to get wrong about the model, so what fails here is the infrastructure: each
proof goes through the pieces that training goes through (the loader, the way to the device,
autocast, AdamW, the checkpoint's files, DDP) and compares what comes out with the same thing got
another way.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
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
from colorcore.training.precision import autocast

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.storage.store import Store

PHOTOS = 512
"""Samples that it learns from: the dataset's first shards with as many, or all."""
BATCH = 16
STEPS = 100
SEEN = 32
LR = 5e-3
SEED = 0
LEARNED = 0.5
"""Share of the constant answer's error that must not be left after ``STEPS`` steps."""
RESUMED_AFTER, RESUMED_FOR = (7, 6), 8
"""Steps before a resume, the first that do not end an epoch, and after it."""
STEPS_TOGETHER = 8
RANK_TOLERANCE = 1e-4
"""Largest difference of a weight: rounding leaves about 1e-7, ranks that train apart 1e-2."""
BF16_TOLERANCE = 0.03
"""In L_norm; bf16 has 8 bits, so that one rounding costs up to 0.004 of a value near 1."""
GPU_TOLERANCE = 1e-3
RANKS_ANSWER_S = 120.0


class ProofError(Exception):
    """Something that training relies on does not work: what was found, and what to do next."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}")
        self.found, self.advice = found, advice


class Regressor(nn.Module):
    """L_norm (B, 1, H, W) -> its mean over the photo (B,), once it has learned to."""

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
    """One such training: the same data, order and start each time it is made."""

    def __init__(
        self,
        samples: Samples,
        device: torch.device | str = "cpu",
        *,
        precision: str = "auto",
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
        """Take some steps; returns their losses, mean squared errors in L_norm."""
        with contextlib.closing(self._batches()) as batches:
            return [self._step(batch) for batch in islice(batches, steps)]

    def predict(self, lab_u8: Tensor) -> Tensor:
        """Answers for stored photos (B, 3, H, W) uint8 -> (B,) on the CPU."""
        with torch.no_grad(), autocast(self.device, self.precision):
            answers: Tensor = self.network(lightness(lab_u8, self.device))
        return answers.cpu()

    def state(self) -> dict[str, Tensor]:
        """All weights and all of the optimiser's tensors, copied to the CPU."""
        tensors, _ = optimizer_state(self.optimizer)
        both = {**{f"model.{k}": v for k, v in self.model.state_dict().items()}, **tensors}
        return {name: value.detach().cpu().clone() for name, value in both.items()}

    def save(self, folder: Path) -> None:
        """Write a checkpoint as training does; recipe and palette in it are placeholders."""
        _, numbers = optimizer_state(self.optimizer)
        epoch, step = divmod(self.done, len(self.loader))
        checkpoint = Checkpoint(
            recipe=load_recipe("simple"),
            weights=self.model.state_dict(),
            palette=_PALETTE,
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
        """Go on from :meth:`save`."""
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


_QUARTERS = np.full(4, 0.25, np.float32)
_PALETTE = Palette(
    np.array([[-50, -50], [-50, 50], [50, -50], [50, 50]], np.float32), _QUARTERS, 4 * _QUARTERS
)


def open_samples(dataset: str | Path | Store) -> Samples:
    """The photos that the precursor learns from.

    Raises:
        DatasetError, StorageError: as :class:`~colorcore.dataset.samples.Samples`.
    """
    return Samples(dataset, "train").first(PHOTOS)


def batch_size(samples: Samples) -> int:
    """``BATCH``, or what makes four steps an epoch; even, so that two ranks can share it."""
    return min(BATCH, max(2, len(samples) // 8 * 2))


def lightness(lab_u8: Tensor, device: torch.device) -> Tensor:
    """Stored photos (B, 3, H, W) uint8 -> L_norm (B, 1, H, W) on the device, pinned on the way."""
    return normalize_L(decode_lab(_to(lab_u8, device))[:, :1])


def _to(lab_u8: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return lab_u8.pin_memory().to(device, non_blocking=True)
    return lab_u8.to(device)


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing to prove: a name, and what does it; that returns one line, or raises ProofError."""

    name: str
    run: Callable[[], str]


def proofs(
    dataset: Store, device: torch.device | str, folder: Path, *, ranks: bool = True
) -> list[Proof]:
    """All proofs on a dataset's samples, in the order in which they build on each other.

    ``folder`` takes checkpoints; without ``ranks`` the one that starts processes is left out.

    Raises:
        DatasetError, StorageError: the samples cannot be opened.
    """
    place, samples = torch.device(device), open_samples(dataset)
    if len(samples) < 2:
        raise ProofError(
            f"expected 2 training samples or more, found {len(samples)}", "shard more photos"
        )
    wanted = [
        Proof("batching", lambda: prove_batching(samples)),
        Proof("transfer", lambda: prove_transfer(samples, place)),
        Proof("learning", lambda: prove_learning(samples, place)),
        Proof("mixed precision", lambda: prove_mixed_precision(samples, place)),
        Proof("checkpoint", lambda: prove_checkpoint(samples, place, folder)),
        Proof("resume", lambda: prove_resume(samples, place, folder)),
    ]
    if ranks:
        wanted.append(Proof("DDP, gloo", lambda: prove_ranks(dataset, folder, "gloo")))
        if place.type == "cuda" and torch.cuda.device_count() > 1:
            wanted.append(Proof("DDP, NCCL", lambda: prove_ranks(dataset, folder, "nccl")))
    return wanted


def prove_batching(samples: Samples) -> str:
    """An epoch has each photo at most once, two ranks share its batches, and a resume finds them.

    Raises:
        ProofError: it is otherwise.
    """
    size = batch_size(samples)
    whole = TrainLoader(samples, size, seed=SEED)
    halves = [TrainLoader(samples, size, seed=SEED, rank=rank, world=2) for rank in range(2)]
    steps = min(8, len(whole))
    batches = list(islice(whole.epoch(0), steps))
    seen = np.concatenate([batch.positions for batch in batches])
    advice = "this is a defect of the loader: report it with the dataset's dataset.json"
    if len(batches) != steps or len(np.unique(seen)) != steps * size:
        raise ProofError(
            f"expected {steps} batches of {size} different photos, got {len(batches)} "
            f"with {len(np.unique(seen))}",
            advice,
        )
    for batch in batches:
        shares = np.concatenate([half.positions(0, batch.step) for half in halves])
        if sorted(shares) != sorted(batch.positions):
            raise ProofError(f"the ranks' shares of batch {batch.step} are not the batch", advice)
        if not torch.equal(batch.lab_u8, samples.read(batch.positions)):
            raise ProofError(
                f"batch {batch.step} holds other photos than its positions say", advice
            )
    middle = steps // 2
    again = next(iter(whole.epoch(0, start_step=middle)))
    if not torch.equal(again.lab_u8, batches[middle].lab_u8):
        raise ProofError(f"an epoch that is resumed at batch {middle} gives other photos", advice)
    return f"{steps} batches of {size} at {samples.size} px, the same for one and two ranks"


def prove_transfer(samples: Samples, device: torch.device) -> str:
    """Photos reach the device as they are, and mean what they mean on the CPU.

    Raises:
        ProofError: they do not.
    """
    lab_u8 = samples.read(np.arange(batch_size(samples)))
    there = _to(lab_u8, device)
    advice = "test the GPU's memory and its driver (nvidia-smi -q)"
    if not torch.equal(there.cpu(), lab_u8):
        raise ProofError(f"photos came back from {device} with other bytes", advice)
    expected = lab_u8[:, 0].numpy().astype(np.float64).mean((1, 2)) * (2 / 255) - 1
    found = lightness(lab_u8, device).mean((1, 2, 3)).cpu().numpy()
    if not np.allclose(found, expected, rtol=0, atol=1e-4):
        off = float(np.abs(found - expected).max())
        raise ProofError(f"mean lightness on {device} is off by {off:.3g} of 2", advice)
    way = "pinned, to and from" if device.type == "cuda" else "nothing to move on the"
    return f"{lab_u8.nbytes / 1e6:.1f} MB, {way} {device}; mean lightness as NumPy has it"


def prove_learning(samples: Samples, device: torch.device) -> str:
    """The regression learns: its error ends well below that of one answer for all photos.

    Raises:
        ProofError: it does not.
    """
    precursor, started = Precursor(samples, device), time.perf_counter()
    losses = precursor.train(STEPS)
    seconds = time.perf_counter() - started
    lab_u8 = samples.read(np.arange(min(len(samples), 8 * BATCH)))
    truth = lab_u8[:, 0].float().mean((1, 2)) * (2 / 255) - 1
    error = _in_L(precursor.predict(lab_u8) - truth)
    constant = _in_L(truth - truth.mean())
    if not np.isfinite(losses).all() or not error <= max(LEARNED * constant, 1.0):
        raise ProofError(
            f"after {STEPS} steps the error is {error:.2f} L, expected at most "
            f"{max(LEARNED * constant, 1.0):.2f}; one answer for all photos has {constant:.2f}",
            "look at the lines above and below: a conv net that cannot learn a mean is no "
            "question of the model",
        )
    return (
        f"mean lightness to {error:.2f} L in {STEPS} steps, {seconds:.1f} s; "
        f"one answer for all: {constant:.2f} L"
    )


def prove_mixed_precision(samples: Samples, device: torch.device) -> str:
    """Under bf16 autocast the network really runs in bf16, answers the same, and learns.

    Raises:
        ProofError: it does not.
    """
    exact, half = (Precursor(samples, device, precision=kind) for kind in ("fp32", "bf16"))
    kinds: list[torch.dtype] = []
    handle = half.model.late.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    lab_u8 = samples.read(np.arange(batch_size(samples)))
    off = float((half.predict(lab_u8) - exact.predict(lab_u8)).abs().max())
    handle.remove()
    advice = "train with --set train.precision=fp32, and see whether torch fits the driver"
    if kinds != [torch.bfloat16]:
        raise ProofError(f"expected convolutions in bf16, they ran in {_kind(kinds)}", advice)
    losses = half.train(4 * STEPS_TOGETHER)
    if not (off <= BF16_TOLERANCE and np.isfinite(losses).all()):
        raise ProofError(
            f"bf16 answers differ by {off:.3g} from fp32 (expected at most {BF16_TOLERANCE}), "
            f"and its last loss is {losses[-1]:.3g}",
            advice,
        )
    if not np.mean(losses[-4:]) < np.mean(losses[:4]):
        raise ProofError(
            f"in bf16 the loss went from {np.mean(losses[:4]):.3g} to {np.mean(losses[-4:]):.3g}",
            advice,
        )
    return f"bf16 answers within {off:.1g} of fp32, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def prove_checkpoint(samples: Samples, device: torch.device, folder: Path) -> str:
    """What is written as a checkpoint is read back bit for bit, optimiser included.

    Raises:
        ProofError: it is not.
    """
    precursor, other = Precursor(samples, device), Precursor(samples, device)
    precursor.train(STEPS_TOGETHER)
    place = folder / "checkpoint"
    precursor.save(place)
    other.restore(place)
    written, read = precursor.state(), other.state()
    wrong = _differing(written, read, 0.0)
    advice = f"see whether the disk of {folder} is sound, and which safetensors is installed"
    if wrong or precursor.done != other.done:
        raise ProofError(f"{_some(wrong or ['the step'])} came back otherwise", advice)
    size = sum(file.stat().st_size for file in place.iterdir())
    shutil.rmtree(place)
    return f"{len(written)} tensors, {size / 1e3:.0f} kB, read back bit for bit"


def prove_resume(samples: Samples, device: torch.device, folder: Path) -> str:
    """A training that is stopped, saved and resumed repeats one that never stopped.

    Bit for bit on a CPU, within rounding on a GPU, whose convolutions add in any order.

    Raises:
        ProofError: it does not.
    """
    whole, stopped, resumed = (Precursor(samples, device) for _ in range(3))
    after = next((n for n in RESUMED_AFTER if n % len(whole.loader)), RESUMED_AFTER[0])
    whole.train(after + RESUMED_FOR)
    stopped.train(after)
    place = folder / "resume"
    stopped.save(place)
    resumed.restore(place)
    resumed.train(RESUMED_FOR)
    shutil.rmtree(place)
    tolerance = GPU_TOLERANCE if device.type == "cuda" else 0.0
    if wrong := _differing(whole.state(), resumed.state(), tolerance):
        raise ProofError(
            f"{_some(wrong)} differ from those of a training that never stopped",
            "do not rely on --resume here; report it with the output of cc doctor --json",
        )
    how = f"within {tolerance:g}" if tolerance else "bit for bit"
    return f"after {after} of {whole.done} steps, as if never stopped: {how}"


RankJob = Callable[[int, "Store", Path, str], None]


def prove_ranks(dataset: Store, folder: Path, backend: str, job: RankJob | None = None) -> str:
    """Two processes with half of each batch train what one process does with all of it.

    ``job`` is what each process runs; :func:`train_rank` if there is none.

    Raises:
        ProofError: they do not, or do not answer.
    """
    from torch.multiprocessing.spawn import ProcessException, start_processes

    place = folder / backend
    place.mkdir(parents=True, exist_ok=True)
    advice = (
        "see whether this machine's host name resolves (getent hosts $(hostname)), or name the "
        "network's interface in GLOO_SOCKET_IFNAME"
        if backend == "gloo"
        else "run again with NCCL_DEBUG=INFO, and with NCCL_P2P_DISABLE=1"
    )
    processes = start_processes(
        job or train_rank, (dataset, place, backend), nprocs=2, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + RANKS_ANSWER_S
    try:
        while not processes.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise ProofError(f"two processes did not end in {RANKS_ANSWER_S:.0f} s", advice)
    except ProcessException as error:
        last = str(error).strip().splitlines()[-1]
        raise ProofError(f"two processes over {backend} failed: {last}", advice) from error
    finally:
        for process in processes.processes:
            process.kill()
    ranks = [load_file(place / f"{rank}.safetensors") for rank in range(2)]
    if wrong := _differing(ranks[0], ranks[1], 0.0):
        raise ProofError(f"{_some(wrong)} differ between the ranks", advice)
    alone = Precursor(open_samples(dataset), _rank_device(0, backend))
    alone.train(STEPS_TOGETHER)
    tolerance = RANK_TOLERANCE if backend == "gloo" else GPU_TOLERANCE
    if wrong := _differing(_weights(alone), ranks[0], tolerance):
        raise ProofError(f"{_some(wrong)} differ from those of one process", advice)
    return (
        f"two processes, {STEPS_TOGETHER} steps: as one with the whole batch, within {tolerance:g}"
    )


def train_rank(rank: int, dataset: Store, folder: Path, backend: str) -> None:
    """One of two ranks: train a little and leave the weights in ``folder``."""
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
    save_file(_weights(precursor), folder / f"{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


def _rank_device(rank: int, backend: str) -> torch.device:
    return torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")


def _weights(precursor: Precursor) -> dict[str, Tensor]:
    return {k: v for k, v in precursor.state().items() if k.startswith("model.")}


def _differing(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> list[str]:
    """Names of the tensors that only one has, or that differ by more than the tolerance."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one
        or name not in other
        or not torch.allclose(one[name], other[name], rtol=0, atol=tolerance)
    ]


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"


def _in_L(difference: Tensor) -> float:
    """Root mean square of differences in L_norm, as L 0..100."""
    return float(difference.square().mean().sqrt()) * L_MAX / 2


def _kind(kinds: list[torch.dtype]) -> str:
    return ", ".join(str(kind).removeprefix("torch.") for kind in kinds) or "nothing"
