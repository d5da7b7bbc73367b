import pytest

from mvar.ops import native


@pytest.fixture
def compiled_passes():
    """Skips a test where there is no compiler."""
    if native.load().library is None:
        pytest.skip(native.load().reason)
