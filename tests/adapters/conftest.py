"""Makes timm and transformers importable before any test module of this folder imports them."""

import pytest
import torch

from fp_audit_adapters._torchvision import ensure_torchvision

ensure_torchvision()


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tiny networks lose more to the handing out of work than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
