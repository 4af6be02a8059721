"""Float32 that is float32: what artifacts are held to, and timed at, is not a GPU's shortcut."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def torch_in_full_precision() -> Iterator[None]:
    """Have torch convolve float32 as such: on GPUs it does so in TF32 by default, with the digits of float16.

    The switches are the process's. The older one is switched, too, for torch's own compiler reads it, which is an error
    where it contradicts the newer ones; alone it would not do, for a plugin may have used those.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32.*")
        try:
            older = cudnn.allow_tf32
        except RuntimeError:  # it contradicted them already
            older = True
        cudnn.allow_tf32 = False
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.allow_tf32 = older
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before
