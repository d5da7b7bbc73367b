from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.ops import cross_entropy
from mvar.scales import ScaleSchedule
from mvar.training.generator.loss import GeneratorLoss, compile_blocks, scales_in_use
from mvar.training.generator.task import GeneratorTask, train
from mvar.training.generator.token_data import TokenData, load_tokenizer
from mvar.training.parallel import Ranks

M_VAR = GeneratorConfig(
    depth=2, width=64, heads=2, state_size=16, num_classes=5, vocab_size=40, latent_channels=8, sides=[1, 2, [2, 3], 4],
    stochastic_depth=0.3, class_dropout=0.3,
)  # fmt: skip
CONFIGS = {
    "m-var": M_VAR,
    "var": GeneratorConfig(**{**M_VAR.__dict__, "attention": "global", "mamba": False}),
    "global and mamba, shared adaln": GeneratorConfig(
        **{**M_VAR.__dict__, "attention": "global", "shared_adaln": True}
    ),
    "recent, both directions": replace(M_VAR, attention="recent", order="parallel", scan="bidirectional"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def network(config):
    generator = Generator(config).double()
    initialise(generator, seed=1)
    with torch.no_grad():
        for i, parameter in enumerate(generator.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return generator.train()


def batch(generator, size=3):
    rng = torch.Generator().manual_seed(3)
    schedule, config = generator.schedule, generator.config
    labels = torch.randint(0, config.num_classes + 1, (size,), generator=rng)
    inputs = torch.randn(size, schedule.length - schedule.areas[0], config.latent_channels, generator=rng).double()
    tokens = torch.randint(config.vocab_size, (size, schedule.length), generator=rng)
    return labels, inputs, tokens, torch.rand(size, generator.noise_size, generator=rng)


def gradients(generator, nll):
    weights = torch.linspace(0.5, 2, nll.numel(), dtype=nll.dtype).view_as(nll)
    slopes = torch.autograd.grad((nll * weights).sum(), generator.parameters())
    return dict(zip(dict(generator.named_parameters()), slopes, strict=True))


@each_config
@pytest.mark.parametrize(("checkpointing", "smoothing"), [(False, 0.0), (True, 0.2)])
def test_values_and_gradients_equal_those_of_full_logits(config, checkpointing, smoothing, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 10 * config.vocab_size)
    generator = network(config)
    labels, inputs, tokens, noise = batch(generator)
    logits = generator(labels, inputs, noise)
    nll = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none", label_smoothing=smoothing)
    expected = nll, logits.argmax(-1) == tokens, gradients(generator, nll)

    generator.activation_checkpointing = checkpointing
    nll, correct = GeneratorLoss(generator, smoothing)(labels, inputs, tokens, noise)
    torch.testing.assert_close((nll, correct, gradients(generator, nll)), expected, rtol=1e-10, atol=1e-12)


@each_config
def test_checkpointed_gradients_are_the_same_under_autocast(config):
    results = []
    for checkpointing in (False, True):
        generator = network(config).float()
        generator.activation_checkpointing = checkpointing
        labels, inputs, tokens, noise = batch(generator)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            nll, _ = GeneratorLoss(generator)(labels, inputs.float(), tokens, noise)
        results.append((nll, gradients(generator, nll)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_first_maps_alone_give_the_same_losses():
    generator = network(M_VAR)
    labels, inputs, tokens, noise = batch(generator)
    losses = GeneratorLoss(generator)
    with torch.no_grad():
        nll, correct = losses(labels, inputs, tokens, noise)
        few_nll, few_correct = losses(labels, inputs[:, :4], tokens[:, :5], noise)
    torch.testing.assert_close(few_nll, nll[:, :5], rtol=0, atol=1e-12)
    assert torch.equal(few_correct, correct[:, :5])
    with pytest.raises(ValueError, match=r"tokens: 4 an image; whole maps have \(1, 5, 11, 27\)"):
        losses(labels, inputs[:, :3], tokens[:, :4], noise)


def test_labels_are_smoothed_in_training_only():
    generator = network(M_VAR)
    labels, inputs, tokens, noise = batch(generator)
    plain, smooth = GeneratorLoss(generator), GeneratorLoss(generator, 0.3)
    assert not torch.equal(plain(labels, inputs, tokens, noise)[0], smooth(labels, inputs, tokens, noise)[0])
    generator.eval()
    assert torch.equal(plain(labels, inputs, tokens)[0], smooth(labels, inputs, tokens)[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile itself reads
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which torch.compile itself does
@pytest.mark.parametrize("mixers", [{}, {"attention": "recent", "scan": "bidirectional"}])
def test_compiled_blocks_give_the_same_losses_and_gradients(mixers):
    """Traced and differentiated as torch.compile does it, but run without its C++, which takes a minute to build."""
    results = []
    for compiled in (False, True):
        generator = network(replace(M_VAR, depth=1, **mixers))
        generator.activation_checkpointing = True
        if compiled:
            compile_blocks(generator, backend="aot_eager")
        labels, inputs, tokens, noise = batch(generator)
        nll, _ = GeneratorLoss(generator)(labels, inputs, tokens, noise)
        results.append((nll, gradients(generator, nll)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    assert "blocks.0.mlp.fc1.weight" in generator.state_dict(), "names stay"


def test_compiling_without_a_compiler_is_refused(generator_run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"^compile = True: finds no C\+\+ compiler here; install g\+\+, or leave"):
        train(generator_run(compile=True))


# --- progressive training ---

SCHEDULE = ScaleSchedule([1, 2, 3, 4, 5, 6])


def test_progressive_training_follows_its_schedule():
    """Of 100 steps the first 60: scales 0-2 alone for 15, then 3, 4 and 5 come in for 15 steps each."""
    for step in range(100):
        count, share = scales_in_use(step, 100, 0.6, 2, SCHEDULE)
        stage, into = (step // 15, step % 15 / 15) if step < 60 else (3, 1.0)
        assert count == 3 + stage
        assert len(share) == SCHEDULE.offsets[count]
        assert share.sum().item() == pytest.approx(1)
        newest, others = share[SCHEDULE.offsets[count - 1] :], share[: SCHEDULE.offsets[count - 1]]
        ratio = 1.0 if stage == 0 else 0.01 + 0.99 * into
        torch.testing.assert_close(newest, (others[:1] * ratio).expand_as(newest))
        assert (others == others[0]).all()


@pytest.mark.parametrize(("progressive", "first", "sides"), [(0.0, 4, [1, 2, 3]), (1.0, 4, [1, 2, 3]), (0.5, 1, [2])])
def test_few_scales_are_all_trained_from_the_start(progressive, first, sides):
    schedule = ScaleSchedule(sides)
    for step in range(10):
        count, share = scales_in_use(step, 10, progressive, first, schedule)
        assert count == len(sides)
        torch.testing.assert_close(share, torch.full((schedule.length,), 1 / schedule.length))


def test_a_progressive_run_computes_the_scales_in_use_only(generator_run, monkeypatch):
    seen = []
    whole = GeneratorTask._token_losses

    def spy(self, tokens, *others):
        seen.append((self.model.training, len(tokens)))
        return whole(self, tokens, *others)

    monkeypatch.setattr(GeneratorTask, "_token_losses", spy)
    train(generator_run(progressive=0.67, progressive_from=1, steps=6))
    assert [count for training, count in seen if training] == [2, 2, 3, 3, 3, 3]
    assert {count for training, count in seen if not training} == {3}, "validation sees all"


# --- noise ---


def test_noise_belongs_to_the_image_of_the_run_not_to_the_batch(generator_run, trained_tokenizer):
    """Two steps of 3 images draw what one step of 6 draws, whatever torch's generator has done."""
    config, alone = generator_run(), Ranks(device=torch.device("cpu"))
    data = TokenData.open(config, alone, load_tokenizer(config.tokenizer, alone.device)).ready(config.val_images)
    losses = []
    for size in (6, 3):
        task = GeneratorTask(replace(config, batch_size=size), alone, data)
        parts = []
        for step in range(6 // size):
            torch.manual_seed(size + step)
            parts.append(task.loss(step, 0)[0])
        losses.append(torch.stack(parts).mean())
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
