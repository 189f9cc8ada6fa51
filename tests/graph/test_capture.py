"""What a model is put into while it is looked at."""

import torch
from torch import nn

from auxin.graph.capture import evaluation


def test_tf32_is_off_while_outputs_are_compared():
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    with evaluation(nn.Linear(1, 1)):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_tf32_comes_back_as_the_user_had_it():
    torch.set_float32_matmul_precision("high")
    try:
        with evaluation(nn.Linear(1, 1)):
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
