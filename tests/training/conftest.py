"""Fixtures of the training's tests."""

import pytest
from optimisers import OPTIMIZERS


@pytest.fixture(params=OPTIMIZERS)
def made(request):
    """Return a function that makes an optimiser of a layer."""
    cls, options = OPTIMIZERS[request.param]
    return lambda target: cls(target, **options)
