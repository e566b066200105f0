"""What decoded sound is, wherever it comes from."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Sound(NamedTuple):
    """One channel of sound, as an audio encoder gets it.

    Attributes:
        samples: (T,) float32, usually within [-1, 1].
        rate: samples per second, in Hz.
    """

    samples: NDArray[np.float32] | NDArray[Any]
    rate: int
