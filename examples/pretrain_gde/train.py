"""Pretraining: telling originals from augmented images, with checkpoints to go on from."""

from __future__ import annotations

import contextlib
import functools
import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from examples.pretrain_gde.augment import Augmenter, Classes
from examples.pretrain_gde.backbones import is_torchvisions
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.detector import Reference, scored_by
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import COUNT, LARGE
from examples.pretrain_gde.model import Outputs, seeded_network
from examples.pretrain_gde.runtime import Runtime
from examples.pretrain_gde.settings import EPOCHS, Settings, derive_seed
from examples.pretrain_gde.tensors import Tensors, load_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights-epoch{:04d}.safetensors"
LOGGED = ("loss", "learning_rate", "augmentation_share")  # of an epoch
EPOCH_FORM = {
    "epoch": EPOCHS,
    **dict.fromkeys((*LOGGED, "seconds", "wall_seconds"), (0.0, LARGE)),
    "valid?": {str: (0.0, 1.0)},
}
CHECKPOINT_FORM = {
    "settings": {},
    "files": {"train": COUNT, "valid": COUNT},
    "processes": COUNT,
    "epochs": [EPOCH_FORM],
    "best?": {"epoch": EPOCHS, "auc": (0.0, 1.0)},
}
RESIDENT_SHARE = 0.5  # of the free memory of a GPU that the data may take
SAVE_EVERY = 60.0  # seconds between two checkpoints, at least: a GPU does an epoch in a few
SHOW_EVERY = 1.0  # seconds between two looks at the loss, at least: each waits for a GPU


@dataclass
class Progress:
    """How far a run has come, as a checkpoint keeps it.

    Attributes
    ----------
    epochs : list of dict
        One record per finished epoch: loss, learning rate, validation AUCs, ``seconds`` of the
        updates, and ``wall_seconds`` with the validation, and the checkpoint before if there is
        one.
    best : dict or None
        Epoch and validation AUC of the best weights so far.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


class Trainer:
    """One run: pretrains one network and keeps the weights of its best validation.

    The state of the last epoch is written to `folder` every `SAVE_EVERY` seconds and at the end,
    that of an interrupt included; with `resume` the run goes on from there, to the same numbers as
    without the break (on one kind of hardware).

    Raises
    ------
    PipelineError
        If the checkpoint belongs to other settings or is damaged, or the loss is not finite.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        folder: Path,
        runtime: Runtime,
        resume: bool = False,
    ) -> None:
        self.settings, self.dataset, self.folder, self.runtime = settings, dataset, folder, runtime
        self.network = seeded_network(settings).to(runtime.device)
        self.network.to(memory_format=torch.channels_last)
        if runtime.world > 1 and runtime.device.type == "cuda":
            if not is_torchvisions(settings.backbone):  # others normalize in layers of their own
                told = "only torchvision's networks can be trained on several GPUs"
                raise PipelineError(f"{told}, got {settings.backbone}")
            nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.wrapped: dict[bool, nn.Module] = {}  # by whether the backbone is frozen
        self.progress = Progress()
        self.unsaved: tuple[Tensors, dict[str, Any]] | None = None
        images, masks = dataset.images["train"], dataset.masks.get("train")
        self.source = Batches(images, masks, settings, runtime)
        self.augment = Augmenter(settings)
        self.files = fingerprint(dataset, ("train", "valid"))
        path = folder / CHECKPOINT
        if resume and path.exists():
            try:
                self._restore(path)
            except PipelineError:
                raise
            except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
                raise PipelineError(f"{path} holds no checkpoint of {settings.backbone}") from error

    def run(self) -> Progress:
        """Train the remaining epochs."""
        settings, done = self.settings, len(self.progress.epochs)
        bar = tqdm(
            total=settings.steps,
            initial=done * settings.updates,
            desc=f"{settings.variant} seed {settings.seed}",
            unit="step",
        )
        gpus = [self.runtime.device] if self.runtime.device.type == "cuda" else []
        begin = saved = time.perf_counter()
        try:
            with bar, self._logs(done) as logs, torch.random.fork_rng(gpus):
                for epoch in range(done, settings.epochs):
                    record = self._epoch(epoch, bar)
                    last = epoch + 1 == settings.epochs
                    if last or (epoch + 1) % settings.validate_every == 0:
                        record["valid"] = self._validate(epoch + 1)
                    now = time.perf_counter()
                    record["wall_seconds"], begin = now - begin, now
                    self.progress.epochs.append(record)
                    self._remember()
                    if last or now - saved >= SAVE_EVERY:
                        self._save()
                        saved = now
                    if logs is not None:
                        _log(logs, record)
                    self._show(bar, record["loss"], record["learning_rate"])
        except KeyboardInterrupt:
            self._save()
            raise
        self.runtime.wait()
        return self.progress

    @functools.cached_property
    def reference(self) -> Reference:
        """Return what the scores are fitted to; made when it is first needed."""
        return Reference(self.settings, self.dataset)

    def _logs(self, done: int) -> contextlib.AbstractContextManager[Any]:
        """Open TensorBoard's event files, if they are wanted."""
        if not (self.runtime.tensorboard and self.runtime.leads):
            return contextlib.nullcontext()
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self.folder / "tensorboard", purge_step=done + 1)

    def _epoch(self, epoch: int, bar: tqdm[Any]) -> dict[str, Any]:
        settings, device = self.settings, self.runtime.device
        model = self.model(frozen=settings.imagenet and epoch < settings.freeze_epochs)
        self.network.train()
        total = torch.zeros((), device=device)
        clock = Clock(device)
        begin = shown = time.perf_counter()
        for step in range(epoch * settings.updates, (epoch + 1) * settings.updates):
            rate = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with clock:
                classes = self.augment(*self.source(step))
            torch.manual_seed(derive_seed(settings.seed, 6, step, self.runtime.rank))  # of dropout
            total += self.update(model, classes)
            if not bar.disable and time.perf_counter() - shown >= SHOW_EVERY:
                self._show(bar, (total / (step % settings.updates + 1)).item(), rate)
                shown = time.perf_counter()
            bar.update()
        loss = self.runtime.mean(total / settings.updates).item()
        seconds = time.perf_counter() - begin
        if not math.isfinite(loss):
            raise PipelineError(f"the loss is {loss} in epoch {epoch + 1}: lower the learning rate")
        return {
            "epoch": epoch + 1,
            "loss": loss,
            "learning_rate": rate,
            "seconds": seconds,
            "augmentation_share": clock.seconds() / seconds,
        }

    def _show(self, bar: tqdm[Any], loss: float, rate: float) -> None:
        """Show the loss of an epoch so far, the learning rate, and the best validation AUC."""
        best = self.progress.best
        shown = {"valid": f"{best['auc']:.3f}"} if best else {}
        bar.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.2g}", **shown)

    def update(self, model: nn.Module, classes: Classes) -> torch.Tensor:
        """Do one step of the optimizer and return the loss, without waiting for the device."""
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=bf16):
            outputs: Outputs = model(classes.inputs)
        loss = functional.cross_entropy(outputs.logits.float(), classes.labels)
        for logits in outputs.maps:
            where = functional.adaptive_avg_pool2d(classes.alpha.float() / 255, logits.shape[-2:])
            missed = functional.binary_cross_entropy_with_logits(logits.float(), where)
            loss = loss + self.settings.map_weight * missed
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def model(self, *, frozen: bool) -> nn.Module:
        """Return the network as it is trained; wrapped anew only when the backbone thaws."""
        if frozen not in self.wrapped:
            self.network.backbone.requires_grad_(not frozen)
            model: nn.Module = self.network
            if self.runtime.world > 1:
                model = DistributedDataParallel(model)
            if self.runtime.compiled:
                model = cast(nn.Module, torch.compile(model))
            self.wrapped = {frozen: model}
        return self.wrapped[frozen]

    def _validate(self, epoch: int) -> dict[str, float]:
        """Compute the validation AUCs; keep the weights if that of the score is the best so far."""
        aucs = {}
        if self.runtime.leads:
            aucs = self.reference.validate(self.network)
            _, score = scored_by(self.settings)
            if self.progress.best is None or aucs[score] > self.progress.best["auc"]:
                self.progress.best = {"epoch": epoch, "auc": aucs[score]}
                weights = self.network.state_dict()
                save_tensors(self.folder / WEIGHTS.format(epoch), weights, {"epoch": epoch})
        self.runtime.wait()
        return aucs

    def _remember(self) -> None:
        """Copy the state, where it is, for a checkpoint of this epoch within the next one."""
        if not self.runtime.leads:
            return
        tensors = _named(self.network).state_dict()
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        info = {
            "settings": self.settings.as_dict(),
            "files": self.files,
            "processes": self.runtime.world,
            "epochs": list(self.progress.epochs),
            "best": self.progress.best,
        }
        self.unsaved = {name: value.clone() for name, value in tensors.items()}, info

    def _save(self) -> None:
        """Write what is remembered, if it is not written yet; then its best weights are enough."""
        if self.unsaved is None:
            return
        _, info = self.unsaved
        save_tensors(self.folder / CHECKPOINT, *self.unsaved)
        self.unsaved = None
        kept = WEIGHTS.format(info["best"]["epoch"]) if info["best"] else None
        for old in self.folder.glob("weights-epoch*.safetensors"):
            if old.name != kept:
                old.unlink()

    def _restore(self, path: Path) -> None:
        tensors, info = load_tensors(path, CHECKPOINT_FORM)
        now, then = self.settings.as_dict(), Settings(**info["settings"]).as_dict()
        if other := [f"{name} {then[name]!r}" for name in now if then[name] != now[name]]:
            raise PipelineError(f"{path} was made with other settings: {', '.join(other)}")
        if info["processes"] != self.runtime.world:
            raise PipelineError(f"{path} was made by {info['processes']} processes")
        if info["files"] != self.files:
            raise PipelineError(f"{path} was made with other training or validation images")
        done = [record["epoch"] for record in info["epochs"]]
        if done != list(range(1, len(done) + 1)) or len(done) > self.settings.epochs:
            raise ValueError(f"its epochs are {done}")
        for name, parameter in self.network.named_parameters():
            momentum = tensors.pop(f"momentum.{name}", None)
            if momentum is not None:
                buffer = torch.empty_like(parameter).copy_(momentum)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.detach()
        _named(self.network).load_state_dict(tensors)
        self.progress = Progress(info["epochs"], info["best"])


def _named(network: nn.Module) -> nn.Module:
    """Wrap the network, to give its tensors the names that they have in a checkpoint."""
    return nn.ModuleDict({"network": network})


class Batches:
    """The originals of each step, and their masks.

    What step *s* takes depends on the seed and *s* alone, so that a run can go on anywhere. Images
    come in random order, all of them before any comes again; each process takes its share.
    """

    def __init__(
        self, images: Images, masks: Images | None, settings: Settings, runtime: Runtime
    ) -> None:
        if settings.batch % runtime.world:
            raise PipelineError(
                f"batch {settings.batch} cannot be shared by {runtime.world} processes"
            )
        self.settings, self.runtime = settings, runtime
        size = images.nbytes + (0 if masks is None else masks.nbytes)
        home = runtime.device
        if home.type == "cuda" and size > RESIDENT_SHARE * torch.cuda.mem_get_info(home)[0]:
            home = torch.device("cpu")
        self.images = torch.from_numpy(images)[:, None].to(home)
        self.masks = None if masks is None else torch.from_numpy(masks)[:, None].to(home)
        self.generator = torch.Generator(runtime.device)
        self.turn, self.order = -1, torch.empty(0)

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Generator]:
        """Return the images and masks of a step on the device, and a generator for its draws."""
        batch, rank = self.settings.batch, self.runtime.rank
        share = batch // self.runtime.world
        indices = self._indices(step * batch, batch)[rank * share : (rank + 1) * share]
        self.generator.manual_seed(derive_seed(self.settings.seed, 1, step, rank))
        device = self.runtime.device
        masks = None if self.masks is None else send(self.masks[indices], device).bool()
        return send(self.images[indices], device), masks, self.generator

    def _indices(self, begin: int, count: int) -> torch.Tensor:
        """Cut `count` positions out of the endless row of permutations."""
        total = len(self.images)
        first, last = begin // total, (begin + count - 1) // total
        row = torch.cat([self._order(turn) for turn in range(first, last + 1)])
        return row[begin - first * total :][:count]

    def _order(self, turn: int) -> torch.Tensor:
        """Return a permutation of all images, where they lie; it goes there once for many steps."""
        if turn != self.turn:
            generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, 0, turn))
            order = torch.randperm(len(self.images), generator=generator)
            self.turn, self.order = turn, send(order, self.images.device)
        return self.order


class Clock:
    """Adds up the time spent inside ``with clock:``, on the device if it is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.spans: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self.begin = self._now()

    def __exit__(self, *error: object) -> None:
        self.spans.append((self.begin, self._now()))

    def _now(self) -> Any:
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """Return the sum, when the device has been waited for."""
        if self.gpu:
            return sum(begin.elapsed_time(end) for begin, end in self.spans) / 1000
        return sum(end - begin for begin, end in self.spans)


def _log(writer: Any, record: dict[str, Any]) -> None:
    """Write one epoch into TensorBoard's event files."""
    for name in LOGGED:
        writer.add_scalar(f"train/{name}", record[name], record["epoch"])
    for score, auc in record.get("valid", {}).items():
        writer.add_scalar(f"valid/auc_{score}", auc, record["epoch"])
    writer.flush()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring a tensor to a device; from the CPU to a GPU without waiting for what is done there."""
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fingerprint(dataset: Dataset, parts: Sequence[str]) -> dict[str, int]:
    """Sum up images and labels of some parts, to be compared with those of an earlier run."""
    found = {}
    for part in parts:
        found[part] = zlib.crc32(dataset.labels(part).data)
        for image in dataset.images[part]:  # of which a view may have no contiguous whole
            found[part] = zlib.crc32(np.ascontiguousarray(image).data, found[part])
    return found
