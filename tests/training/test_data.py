"""Training on shards and streams."""

from dataclasses import replace

from mvar.training.generator import task as generator
from mvar.training.tokenizer import task as tokenizer

from .runs import checkpoint, same_bits, train_until


def test_shards_resume_bit_for_bit_with_other_workers(tokenizer_run, three_shards, tmp_path):
    train, task = tokenizer.train, tokenizer.TokenizerTask
    config = tokenizer_run(
        validate_every=6, data=three_shards, resize_factor=1.25, workers=0, out=str(tmp_path / "whole")
    )
    train(config)
    broken = replace(config, out=str(tmp_path / "broken"), workers=3)
    train_until(3, train, task, broken)
    train(replace(broken, resume=True, workers=1))
    assert same_bits(checkpoint(config.out)["tensors"], checkpoint(broken.out)["tensors"])


def test_a_stream_is_trained_on_and_says_where_it_resumes(generator_run, three_shards, tmp_path, capsys):
    train, task = generator.train, generator.GeneratorTask
    secret = f"pipe:cat {three_shards} # key=secret"
    config = generator_run(validate_every=6, data=secret, val_data=three_shards, out=str(tmp_path / "run"))
    train_until(5, train, task, config)
    assert "a stream of 3 shards of 4 classes, 24 images for validation" in capsys.readouterr().err
    model = train(replace(config, resume=True))
    assert "the stream resumes at the beginning of shard 3 of 3 in epoch 1" in capsys.readouterr().err
    assert model.classes == list("0123")
    assert "secret" not in str(model.provenance)
