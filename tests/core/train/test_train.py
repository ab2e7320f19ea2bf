"""Training is DiffSynth's step on encoded examples, and a function of its seed alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffsynth import SDXLImagePipeline
from diffsynth.trainers.text_to_image import LightningModelForT2ILoRA

from core.backbone.backbone import TRAIN_TIMESTEPS, Backbone
from core.backbone.encode import Examples
from core.files.cache import Cache
from core.heartbeat import Interrupted
from core.lora import adapters
from core.story.render import render_scenes
from core.story.score import score_images
from core.train.draw import StepDraw, adapters_seed
from core.train.state import load_state
from core.train.train import Checkpoint, NanLossError, train_lora
from core.trial.spec import Rendering, Story, Training

TRAINING = Training(lora_rank=4, lora_alpha=8, epochs=2, steps_per_epoch=3, batch_size=2, learning_rate=2e-3)
Trained = tuple[list[float], dict[str, adapters.Pair]]


def silent(epoch: int, losses: list[float]) -> None:
    pass


def trained(
    backbone: Backbone,
    examples: Examples,
    training: Training = TRAINING,
    *,
    seed: int = 7,
    epoch_done: Callable[[int, list[float]], None] = silent,
) -> Trained:
    losses = train_lora(backbone, examples, training, seed, epoch_done)
    pairs = adapters.extract(backbone.unet)
    adapters.remove(backbone.unet)
    return losses, pairs


def same(one: dict[str, adapters.Pair], other: dict[str, adapters.Pair]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].down, other[name].down) and torch.equal(one[name].up, other[name].up)
        for name in one
    )


@pytest.fixture(scope="module")
def reference(backbone: Backbone, examples: Examples) -> Trained:
    return trained(backbone, examples)


def test_the_same_seed_gives_the_same_bits(
    backbone: Backbone, examples: Examples, reference: Trained
) -> None:
    torch.manual_seed(12345)  # whatever the global random state is
    losses, pairs = trained(backbone, examples)
    assert losses == reference[0]
    assert same(pairs, reference[1])


def test_another_seed_gives_another_lora(backbone: Backbone, examples: Examples, reference: Trained) -> None:
    losses, pairs = trained(backbone, examples, seed=8)
    assert losses != reference[0]
    assert not same(pairs, reference[1])


def test_k_epochs_are_a_prefix_of_k_plus_one(
    backbone: Backbone, examples: Examples, reference: Trained
) -> None:
    kept: list[dict[str, adapters.Pair]] = []

    def keep(epoch: int, losses: list[float]) -> None:
        kept.append(adapters.extract(backbone.unet))

    losses, _ = trained(backbone, examples, replace(TRAINING, epochs=3), epoch_done=keep)
    assert losses[:6] == reference[0]
    assert same(kept[1], reference[1])


def test_an_epoch_reports_its_number_and_its_own_losses(backbone: Backbone, examples: Examples) -> None:
    reported: list[tuple[int, list[float]]] = []
    losses, _ = trained(backbone, examples, epoch_done=lambda epoch, part: reported.append((epoch, part)))
    assert reported == [(1, losses[:3]), (2, losses[3:])]


class StopAt:
    """A heartbeat that asks for a stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_training_equals_one_that_was_never_stopped(
    backbone: Backbone, examples: Examples, tmp_path: Path, stop: int, dropout: float
) -> None:
    training = replace(TRAINING, lora_dropout=dropout, random_flip=True)
    whole_losses, whole = trained(backbone, examples, training)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "words")
    told: list[int] = []
    with pytest.raises(Interrupted):
        train_lora(
            backbone,
            examples,
            training,
            7,
            lambda epoch, _: told.append(epoch),
            checkpoint=checkpoint,
            heartbeat=StopAt(stop),
        )
    adapters.remove(backbone.unet)
    state = load_state(checkpoint.path, "words")
    assert state is not None
    assert state.losses == whole_losses[:stop]
    losses = train_lora(
        backbone,
        examples,
        training,
        7,
        lambda epoch, _: told.append(epoch),
        state=state,
        checkpoint=checkpoint,
    )
    assert losses == whole_losses
    assert same(adapters.extract(backbone.unet), whole)
    assert told == [1, 2]


def test_a_checkpoint_is_written_at_each_epoch_s_end_and_when_it_is_due(
    backbone: Backbone, examples: Examples, tmp_path: Path
) -> None:
    def steps_saved(every_s: float) -> list[int]:
        checkpoint, seen = Checkpoint(tmp_path / f"{every_s}.safetensors", "words", every_s), []

        def look() -> None:
            state = load_state(checkpoint.path, "words")
            seen.append(state.step if state else 0)

        train_lora(backbone, examples, TRAINING, 7, silent, checkpoint=checkpoint, heartbeat=look)
        adapters.remove(backbone.unet)
        return seen

    assert steps_saved(1e9) == [0, 0, 3, 3, 3, 6]
    assert steps_saved(0) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_of_one_batch_train_the_same_lora(
    backbone: Backbone, examples: Examples, micro_batch: int
) -> None:
    training = replace(TRAINING, batch_size=4)
    losses, pairs = trained(backbone, examples, training)
    micro_losses = train_lora(backbone, examples, training, 7, silent, micro_batch=micro_batch)
    assert micro_losses == pytest.approx(losses, rel=1e-4)
    for name, pair in adapters.extract(backbone.unet).items():
        torch.testing.assert_close(pairs[name].up, pair.up, rtol=0, atol=training.learning_rate / 20)


def test_every_matrix_learns(backbone: Backbone, reference: Trained) -> None:
    assert len(reference[1]) == 88
    assert all(pair.up.abs().max() > 0 for pair in reference[1].values())


def test_the_loss_falls(backbone: Backbone, examples: Examples) -> None:
    """Over the same draws: the later half of the steps, with and without having learned."""
    training = replace(TRAINING, epochs=1, steps_per_epoch=24)
    losses, _ = trained(backbone, examples, training)
    untrained, _ = trained(backbone, examples, replace(training, learning_rate=0.0))
    assert sum(losses[12:]) < sum(untrained[12:])


def test_the_losses_are_those_of_diffsynth_s_training_step(
    backbone: Backbone, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both get the same noise and timesteps, one example a step, and an AdamW each."""
    training = replace(TRAINING, epochs=1, steps_per_epoch=5, batch_size=1)
    ours, pairs = trained(backbone, examples, training, seed=3)

    stock = LightningModelForT2ILoRA(learning_rate=training.learning_rate, use_gradient_checkpointing=False)
    stock.pipe = SDXLImagePipeline(device="cpu", torch_dtype=torch.float32)
    stock.pipe.scheduler, stock.pipe.unet, stock.pipe.prompter = (
        backbone.new_scheduler(),
        backbone.unet,
        backbone.prompter,
    )
    stock.pipe.scheduler.set_timesteps(TRAIN_TIMESTEPS)
    monkeypatch.setattr(stock, "log", lambda *args, **kwargs: None)
    adapters.inject(backbone.unet, Training(lora_rank=4, lora_alpha=8), adapters_seed(3))
    optimizer = stock.configure_optimizers()
    theirs = []
    for step in range(training.steps_per_epoch):
        draw = StepDraw(3, step, len(examples.latents_NCHW), (4, 16, 16), 1)
        row = int(draw.rows)
        embedded = {
            "encoder_hidden_states": examples.captions.tokens_NTD[row][None],
            "add_text_embeds": examples.captions.pooled_ND[row][None],
        }
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda like, noise=draw.noise_BCHW: noise)
            # It draws a place in the scheduler's timesteps, which run from 1099 down to 0.
            patch.setattr(torch, "randint", lambda *args, draw=draw: TRAIN_TIMESTEPS - 1 - draw.timesteps)
            patch.setattr(stock.pipe, "encode_prompt", lambda text, positive, words=embedded: words)
            loss = stock.training_step(
                {"text": "", "image": None, "latents": examples.latents_NCHW[row][None]}, step
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(float(loss.detach()))
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, pair in adapters.extract(backbone.unet).items():
        torch.testing.assert_close(pairs[name].up, pair.up, rtol=0, atol=training.learning_rate / 100)


def test_a_mad_learning_rate_is_an_error(backbone: Backbone, examples: Examples) -> None:
    with pytest.raises(NanLossError, match="lower learning rate"):
        train_lora(
            backbone, examples, replace(TRAINING, learning_rate=1e30, epochs=1, steps_per_epoch=6), 7, silent
        )
    assert not backbone.unet.training


def test_a_diverged_epoch_is_never_reported_done(backbone: Backbone, examples: Examples) -> None:
    done: list[int] = []
    with pytest.raises(NanLossError):
        train_lora(
            backbone,
            examples,
            replace(TRAINING, learning_rate=1e30, epochs=1, steps_per_epoch=6),
            7,
            lambda epoch, losses: done.append(epoch),
        )
    assert done == []


def test_the_base_weights_are_untouched(backbone: Backbone, examples: Examples) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.unet.state_dict().items()}
    trained(backbone, examples)
    after = backbone.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not backbone.unet.training


def test_evaluation_between_epochs_changes_nothing(
    backbone: Backbone, examples: Examples, reference: Trained, story: Story, cache: Cache
) -> None:
    def look(epoch: int, losses: list[float]) -> None:
        rendering = Rendering(steps=2, cfg_scale=3.0, size_px=128)
        score_images(backbone, list(render_scenes(backbone, story.scenes[:1], rendering, cache)))
        torch.rand(epoch)

    losses, pairs = trained(backbone, examples, epoch_done=look)
    assert losses == reference[0]
    assert same(pairs, reference[1])


def test_dropout_is_drawn_from_the_seed(backbone: Backbone, examples: Examples, reference: Trained) -> None:
    def disturb(epoch: int, losses: list[float]) -> None:
        torch.manual_seed(epoch + 5)

    training = replace(TRAINING, lora_dropout=0.3)
    one = trained(backbone, examples, training)
    torch.manual_seed(99)
    other = trained(backbone, examples, training, epoch_done=disturb)
    assert one[0] == other[0] != reference[0]
    assert same(one[1], other[1])


def test_rendering_and_scoring_leave_the_global_random_state_alone(
    backbone: Backbone, story: Story, cache: Cache
) -> None:
    before = torch.get_rng_state()
    images = list(
        render_scenes(backbone, story.scenes[:1], Rendering(steps=2, cfg_scale=3.0, size_px=128), cache)
    )
    score_images(backbone, images)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_flip_takes_the_mirrored_latents(backbone: Backbone, examples: Examples) -> None:
    """At learning rate 0 each step's loss is that of the plain or of the mirrored example, as the step drew
    it.
    """
    still = replace(TRAINING, learning_rate=0.0, epochs=1, steps_per_epoch=8, batch_size=1)
    mirror_only = replace(examples, latents_NCHW=examples.mirrored_NCHW)
    flipped, _ = trained(backbone, examples, replace(still, random_flip=True))
    plain, _ = trained(backbone, examples, still)
    mirrored, _ = trained(backbone, mirror_only, still)
    mirrors = [bool(StepDraw(7, step, 6, (4, 16, 16), 1).mirror) for step in range(8)]
    assert set(mirrors) == {True, False}
    assert flipped == [m if mirror else p for mirror, m, p in zip(mirrors, mirrored, plain, strict=True)]


def test_only_the_named_modules_learn(backbone: Backbone, examples: Examples) -> None:
    _, pairs = trained(backbone, examples, replace(TRAINING, target_modules="to_q,to_v"))
    assert len(pairs) == 44
    assert {name.rpartition(".")[2] for name in pairs} == {"to_q", "to_v"}


@pytest.mark.parametrize(("count", "batch_size"), [(6, 4), (3, 5), (5, 1), (4, 4)])
def test_each_example_is_seen_equally_often(count: int, batch_size: int) -> None:
    rows = torch.cat([StepDraw(0, step, count, (1,), batch_size).rows for step in range(3 * count)])
    assert torch.bincount(rows).tolist() == [3 * batch_size] * count


def test_the_order_of_the_examples_changes_from_deck_to_deck() -> None:
    decks = {tuple(StepDraw(0, step, 6, (1,), 6).rows.tolist()) for step in range(5)}
    assert len(decks) == 5


def test_a_step_s_draws_are_a_function_of_seed_and_step() -> None:
    one, again, later, other = (StepDraw(*key, 6, (4, 2, 2), 3) for key in ((1, 2), (1, 2), (1, 3), (2, 2)))
    assert torch.equal(one.noise_BCHW, again.noise_BCHW)
    assert torch.equal(one.timesteps, again.timesteps)
    assert not torch.equal(one.noise_BCHW, later.noise_BCHW)
    assert not torch.equal(one.noise_BCHW, other.noise_BCHW)


def test_the_timesteps_are_all_of_kolors_1100() -> None:
    drawn = StepDraw(0, 0, 1, (1,), 50_000).timesteps
    assert drawn.unique().tolist() == list(range(1100))


def test_an_image_is_drawn_as_often_as_its_repeats_say(examples: Examples) -> None:
    one_pass = replace(examples, repeats=(10, 5, 5, 5, 5, 5)).rows_of_a_pass
    assert one_pass.tolist() == [0, 0, 1, 2, 3, 4, 5]
    rows = torch.cat([one_pass[StepDraw(3, step, len(one_pass), (1,), 2).rows] for step in range(7)])
    assert rows.bincount().tolist() == [4, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("repeats", [(), (1,) * 6, (10,) * 6])
def test_equal_repeats_draw_as_none_do(examples: Examples, repeats: tuple[int, ...]) -> None:
    assert replace(examples, repeats=repeats).rows_of_a_pass.tolist() == list(range(6))


def test_repeats_decide_what_is_learnt(backbone: Backbone, examples: Examples) -> None:
    def losses(repeats: tuple[int, ...], latents_NCHW: torch.Tensor) -> list[float]:
        return trained(backbone, replace(examples, repeats=repeats, latents_NCHW=latents_NCHW))[0]

    never, latents = (1, 0, 0, 0, 0, 0), examples.latents_NCHW
    others = torch.cat([latents[:1], latents[1:] + 1])
    assert losses(never, others) == losses(never, latents)
    assert losses((), others) != losses((), latents)
