"""Float32 that is float32: what artifacts are held to, and timed at, is not a GPU's shortcut."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def torch_in_full_precision() -> Iterator[None]:
    """Have torch convolve float32 as such: on GPUs it does so in TF32 by default, with the digits of float16.

    The switch is the process's. It is the older of torch's two, for once the newer one was used reading the older one
    is an error, and torch's own compiler reads it.
    """
    from torch.backends import cudnn

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32.*")
        before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
