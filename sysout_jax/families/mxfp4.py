"""MXFP4, in which gpt-oss is published: 4-bit numbers in blocks of 32 that share a power of two.

Source: Open Compute Project 2023, OCP Microscaling Formats (MX) Specification 1.0, section 5.
"""

import ml_dtypes
import numpy as np
from jaxtyping import UInt8

BLOCK = 32  # numbers that share a scale
BIAS = 127  # of its exponent
_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_VALUES = np.concatenate([_E2M1, -_E2M1])


def unpacked_shape(blocks: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape [E, I, O] of the matrices whose blocks [E, O, I/32, 16] have this shape."""
    experts, outputs, groups, _ = blocks
    return experts, groups * BLOCK, outputs


def unpack(blocks: UInt8[np.ndarray, "E O G 16"], scales: UInt8[np.ndarray, "E O G"]) -> np.ndarray:
    """The matrices [E, I, O] in bfloat16, in which every product is exact.

    w[e, 32 g + 2 b + h, o] = value(nibble h of blocks[e, o, g, b]) * 2^(scales[e, o, g] - 127), the
    low nibble first.

    Args:
      blocks: [E, O, G, 16], two numbers in a byte.
      scales: [E, O, G], exponents.
    """
    out = np.empty(unpacked_shape(blocks.shape), ml_dtypes.bfloat16)
    for expert in range(len(blocks)):
        nibbles = np.stack([blocks[expert] & 15, blocks[expert] >> 4], axis=-1)
        exponent = scales[expert].astype(np.int32) - BIAS
        values = np.ldexp(_VALUES[nibbles], exponent[:, :, None, None])
        out[expert] = values.reshape(out.shape[2], out.shape[1]).T
    return out
