import pytest

from mvar.bench import roofline


@pytest.fixture
def small_machine(monkeypatch):
    """Products and reads that take no time to speak of."""
    monkeypatch.setattr(roofline, "SIDES", (64,))
    monkeypatch.setattr(roofline, "READ_BYTES", 2**20)
