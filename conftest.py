"""One thread a process: tests run side by side, and tiny tensors gain nothing from more."""

import torch

torch.set_num_threads(1)
