"""The rows, most important first, until the time is used up."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.backbone.backbone import DTYPES
from core.backbone.encode import Examples, encode_prompts
from core.files.cache import Cache
from core.lora import adapters
from core.story.render import render_scenes
from core.story.score import score_images
from core.train.train import LIGHTNING_PRECISION
from core.trial.spec import Training
from tests.gpu import checks, flops, naive, work
from tests.gpu.clock import Stopwatch, matmul_tflops
from tests.gpu.shapes import Shape, build_backbone
from tests.gpu.table import TRIAL_IMAGES, TRIAL_STEPS, Check, Findings, Row

log = logging.getLogger(__name__)
TRAINING = Training(lora_rank=16, lora_alpha=4)  # the challenge baseline's
SET_UP_S = 8.0  # to put adapters on, to warm up
FIRST_GUESS = 0.25  # of the speed of a matrix product, until a row was measured
CAUTION = 0.8  # of the last row's speed
Measured = dict[str, Any]


class TimeUpError(BaseException):
    """The time limit is reached: raised in whatever runs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure where: the first precision is the main one, the second has the less important rows."""

    shape: Shape
    device: torch.device
    precisions: tuple[str, str]
    compiler: str
    started_s: float  # on time.perf_counter
    budget_s: float


class Bench:
    """Measures the rows one after the other; a row that fails gets a note, and the next one runs."""

    def __init__(self, plan: Plan, findings: Findings) -> None:
        self._plan, self._findings = plan, findings
        self._main, self._second = plan.precisions
        self._training = replace(
            TRAINING, steps_per_epoch=plan.shape.steps_per_epoch, epochs=plan.shape.epochs
        )
        self._failure = ""
        self._examples: dict[str, Examples] = {}
        self._speed = FIRST_GUESS * matmul_tflops(plan.device, DTYPES[self._main])

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._build(Cache(Path(folder) / "cache"))
            self._naive(Path(folder) / "data")
            self._let_the_text_encoder_go()
            self._step(self._main, 1, checkpointing=False)
            self._images(self._main, TRIAL_IMAGES)
            self._step(self._main, 1, checkpointing=True)
            self._compare(
                lambda: checks.half_against_full(
                    self._backbone,
                    self._plan.shape,
                    [DTYPES[name] for name in self._plan.precisions if name != "fp32"],
                )
            )
            self._compare(lambda: checks.device_against_cpu(self._plan.device))
            self._compare(lambda: checks.replayed_against_launched(self._plan.device))
            self._images(self._main, 1)
            self._load(Path(folder) / "models")
            self._score()
            self._compiled_step()
            self._wider_steps(self._main)
            self._turn_to(self._second)
            self._step(self._second, 1, checkpointing=False)
            self._images(self._second, TRIAL_IMAGES)
            self._step(self._second, 1, checkpointing=True)
            self._images(self._second, 1)
            self._wider_steps(self._second)

    def _build(self, cache: Cache) -> None:
        watch = Stopwatch(self._plan.device)
        backbone = self._backbone = build_backbone(self._plan.shape, self._plan.device, DTYPES[self._main])
        for part in backbone.readers:
            getattr(backbone, "prompter" if part == "text_encoder" else part)
        watch.mark()
        self._cache = cache
        self._findings.rows.append(
            Row(
                work="build",
                precision=self._main,
                seconds=watch.seconds(),
                peak_gb=watch.peak_gb,
                note="random weights made on the device, text encoder and scorer with them; no files",
            )
        )

    def _naive(self, data: Path) -> None:
        shape, scenes = self._plan.shape, work.SCENES[:2]

        def train() -> Measured:
            watch = naive.time_training(
                self._backbone, shape, self._training, LIGHTNING_PRECISION[DTYPES[self._main]], data
            )
            return self._per_step(watch)

        def draw() -> Measured:
            # The challenge's notebook loads its LoRA in the pipeline's own precision.
            for parameter in adapters.trained_parameters(self._backbone.unet).values():
                parameter.data = parameter.data.to(self._backbone.dtype)
            watch, stock = naive.time_images(self._backbone, shape, scenes)
            ours = list(render_scenes(self._backbone, scenes, shape.rendering, self._cache))
            apart = checks.images_apart("", stock[:1], stock[1:])
            self._findings.checks.append(
                checks.images_apart(
                    f"image against the stock pipeline's, mean level of 255 (two scenes: {apart.value:.0f})",
                    ours,
                    stock,
                )
            )
            return {
                "seconds": watch.seconds(1) / len(scenes),
                "peak_gb": watch.peak_gb,
                "note": f"mean of {len(scenes)}, prompts encoded for each",
            }

        self._measure(
            Row(
                work="step",
                way="naive",
                precision=self._main,
                checkpointing=True,
                tflop=flops.training_step(shape, TRAINING.lora_rank, True) + flops.encoding(shape),
            ),
            self._training.total_steps,
            train,
        )
        self._measure(
            Row(
                work="images",
                way="naive",
                precision=self._main,
                tflop=flops.images(shape, 1) + 2 * flops.text(shape),
            ),
            2 * len(scenes),
            draw,
        )
        adapters.remove(self._backbone.unet)

    def _let_the_text_encoder_go(self) -> None:
        """Encode every prompt in both precisions, as a worker does before its first trial."""
        prompts, unwanted = (
            [getattr(scene, name) for scene in work.SCENES] for name in ("prompt", "negative_prompt")
        )
        for precision in (self._second, self._main):
            self._turn_to(precision)
            self._backbone.prompter.text_encoder.to(self._backbone.dtype)
            encode_prompts(unwanted, self._backbone, self._cache)
            embeddings = encode_prompts(prompts, self._backbone, self._cache)
            self._examples[precision] = work.random_examples(
                self._backbone, self._plan.shape.latents_CHW, embeddings
            )
        self._backbone = replace(self._backbone, text_encoder_alone=True)
        self._backbone.free_text_encoder()

    def _turn_to(self, precision: str) -> None:
        """The same base model in another dtype."""
        self._backbone = replace(self._backbone, dtype=DTYPES[precision])
        for model in (self._backbone.unet, self._backbone.vae_decoder):
            model.to(self._backbone.dtype)

    def _step(self, precision: str, batch: int, *, checkpointing: bool) -> None:
        self._measure(
            self._step_row("ours", precision, batch, checkpointing),
            self._training.total_steps,
            lambda: self._per_step(self._train(precision, batch, checkpointing)),
        )

    def _wider_steps(self, precision: str) -> None:
        for batch in (4, 2):
            for checkpointing in (False, True):
                self._step(precision, batch, checkpointing=checkpointing)

    def _images(self, precision: str, count: int) -> None:
        shape = self._plan.shape
        stories = [work.SCENES] if count > 1 else [work.SCENES[:1], work.SCENES[1:2]]

        def draw() -> Measured:
            with work.wearing(self._backbone, TRAINING):
                watch, _ = work.time_images(self._backbone, stories, shape.rendering, self._cache)
            return {
                "seconds": watch.seconds(1) / len(stories),
                "peak_gb": watch.peak_gb,
                "note": f"{shape.rendering.steps} steps with guidance" + ("" if count > 1 else ", mean of 2"),
            }

        self._measure(
            Row(work="images", precision=precision, batch=count, tflop=flops.images(shape, count)),
            1.05 * len(stories),
            draw,
        )

    def _load(self, folder: Path) -> None:
        size_gb = sum(tensor.nbytes for tensor in self._backbone.unet.state_dict().values()) / 1e9

        def read() -> Measured:
            watch = work.time_loading(self._backbone, self._plan.shape, folder)
            shutil.rmtree(folder)
            return {
                "seconds": watch.seconds(),
                "peak_gb": watch.peak_gb,
                "note": f"the UNet alone, {size_gb:.1f} GB just written",
            }

        self._measure(Row(work="load", precision=self._main), 0, read)

    def _score(self) -> None:
        """Eight images through CLIP's own preprocessing and the scorer, one by one."""
        watch = Stopwatch(self._plan.device)
        size_px = self._plan.shape.rendering.size_px
        images = naive.soft_images(size_px, TRIAL_IMAGES + 1)
        score_images(self._backbone, images[:1])
        watch.mark()
        score_images(self._backbone, images[1:])
        watch.mark()
        self._findings.rows.append(
            Row(work="score", precision="fp32", batch=TRIAL_IMAGES, seconds=watch.seconds(1))
        )

    def _compiled_step(self) -> None:
        def train() -> Measured:
            with work.compiled_blocks(self._backbone, self._plan.compiler):
                measured = self._per_step(self._train(self._main, 1, False))
            eager = self._findings.row("step", "ours", self._main, 1, False)
            if eager and eager.seconds and eager.warm_up_s:
                compiling_s = measured["warm_up_s"] - eager.warm_up_s
                saved_s = TRIAL_STEPS * (eager.seconds - measured["seconds"])
                self._findings.lines.append(
                    f"compiling the transformer blocks took {compiling_s:.1f} s and saves {saved_s:.1f} s in "
                    f"{TRIAL_STEPS} steps: for one trial it "
                    f"{'pays' if saved_s > compiling_s else 'does not pay'}"
                )
            return measured

        self._measure(self._step_row("compiled", self._main, 1, False), 3 * self._training.total_steps, train)

    def _compare(self, make: Callable[[], Iterator[Check]]) -> None:
        self._guard("numeric checks", lambda: self._findings.checks.extend(make()))

    def _step_row(self, way: str, precision: str, batch: int, checkpointing: bool) -> Row:
        return Row(
            work="step",
            way=way,
            precision=precision,
            batch=batch,
            checkpointing=checkpointing,
            tflop=batch * flops.training_step(self._plan.shape, TRAINING.lora_rank, checkpointing),
        )

    def _train(self, precision: str, batch: int, checkpointing: bool) -> Stopwatch:
        training = replace(
            self._training, batch_size=batch, gradient_checkpointing="on" if checkpointing else "off"
        )
        return work.time_training(self._backbone, self._examples[precision], training)

    def _per_step(self, watch: Stopwatch) -> Measured:
        timed = self._training.total_steps - self._training.steps_per_epoch
        return {
            "seconds": watch.seconds(1) / timed,
            "warm_up_s": watch.seconds(0, 1),
            "peak_gb": watch.peak_gb,
            "note": f"mean of {timed}",
        }

    def _measure(self, row: Row, times: float, measure: Callable[[], Measured]) -> None:
        """Take one row that does its work so many times, if there is time for it."""
        expected_s = SET_UP_S + times * (row.tflop or 0) / self._speed
        if time.perf_counter() - self._plan.started_s + expected_s > self._plan.budget_s:
            self._findings.dropped.append(f"{row.name} (about {expected_s:.0f} s)")
            return
        measured = self._guard(row.name, measure)
        row = replace(row, **measured) if measured else replace(row, note=self._failure)
        self._findings.rows.append(row)
        if row.tflops:
            self._speed = CAUTION * row.tflops

    def _guard(self, name: str, do: Callable[[], Any]) -> Any:
        """Run it; None and a note if it does not fit into memory or breaks."""
        try:
            return do()
        except torch.OutOfMemoryError:
            self._failure = "does not fit into memory"
        except Exception:  # becomes the row's note: one setting must not cost the others
            log.exception("%s", name)
            self._failure = "broken"
            self._findings.broken.append(name)
        return None
