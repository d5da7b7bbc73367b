import pytest
import torch

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.training.generator.loss import Compiling, compile_blocks
from mvar.training.generator.task import train

LABELS = torch.tensor([0, 1, 2])


def network(depth, **changes):
    shape = {"width": 64, "heads": 1, "state_size": 16, "num_classes": 3, "vocab_size": 16, "latent_channels": 4}
    generator = Generator(GeneratorConfig(depth=depth, sides=[1, 2, 3], stochastic_depth=0.3, **shape, **changes))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return generator.train()


def losses(generator, scales=3):
    length = generator.schedule.offsets[scales]
    tokens, inputs = torch.ones(3, length, dtype=torch.long), torch.ones(3, length - 1, 4)
    return generator.token_losses(LABELS, inputs, tokens)[0]


class Graphs(list):
    """A backend that keeps what it is given and runs it as it is."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph


@pytest.fixture(autouse=True)
def fresh():
    """As in a new process, before and after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile itself reads
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which torch.compile itself does
def test_blocks_that_are_alike_are_compiled_once_and_for_training_alone():
    graphs = Graphs()
    one = network(depth=1)
    compile_blocks(one, backend=graphs)
    losses(one).sum().backward()
    needed = len(graphs)
    assert needed > 0
    torch._dynamo.reset()
    graphs.clear()
    three = network(depth=3)
    compile_blocks(three, backend=graphs)
    for _ in range(2):  # other branches are dropped each time
        losses(three).sum().backward()
    assert len(graphs) == needed
    with torch.no_grad():
        three.eval()
        plain = network(depth=3).eval()
        torch.testing.assert_close(losses(three), losses(plain))
        losses(three, scales=2)
    assert len(graphs) == needed


def test_a_run_says_what_it_waits_for(capsys):
    compiling = Compiling(visible=True)
    for scales in (2, 2, 3):  # progressive training takes in another map at the third step
        compiling.before_step(scales)
        compiling.before_step(scales)  # another part of the batch
        compiling.after_step()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said[1::2]] == ["compile: done"] * 2
    assert all(line.startswith("compile: the blocks are compiled during this step") for line in said[::2])
    assert len(said) == 4
    quiet = Compiling(visible=False)
    quiet.before_step(1)
    quiet.after_step()
    assert not capsys.readouterr().err


def test_compiling_without_a_compiler_is_refused(generator_run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"^compile = True: finds no C\+\+ compiler here; install g\+\+, or leave"):
        train(generator_run(compile=True))
