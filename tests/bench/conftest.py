import pytest

from mvar.bench import measuring


@pytest.fixture
def small_machine(monkeypatch):
    """Products and reads that take no time to speak of."""
    monkeypatch.setattr(measuring, "SIDES", (64,))
    monkeypatch.setattr(measuring, "READ_BYTES", 2**20)
