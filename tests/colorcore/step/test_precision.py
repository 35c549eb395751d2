"""In which precision what stays float32 is multiplied."""

import pytest
import torch

from colorcore.step.precision import fast_products


@pytest.mark.parametrize(
    ("device", "precision", "within"),
    [("cuda", "auto", "high"), ("cuda", "fp16", "high"), ("cuda", "fp32", "highest"),
     ("cpu", "auto", "highest")],
)  # fmt: skip
def test_products_are_fast_on_a_gpu_and_only_within_a_step(
    device: str, precision: str, within: str
):
    assert torch.get_float32_matmul_precision() == "highest"
    with fast_products(torch.device(device), precision):
        assert torch.get_float32_matmul_precision() == within
    assert torch.get_float32_matmul_precision() == "highest"
