"""The random words that sequences are drawn with: the same numbers for every engine.

Words come from Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"), a pure function of (seed, k, position). An engine spreads a position's two words over
the vocabulary on its own device. So both engines draw the same tokens, but where rounding decides.
"""

import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)


def sequence_words(seeds: np.ndarray, samples: int, length: int) -> np.ndarray:
    """The words of every sequence and position.

    A sequence's key is k encrypted with its group's seed; its words are its counters 0, 1, 2, ...
    encrypted with that key, both halves of each in one (what `jax.random`'s `fold_in` and `bits`
    make of the seed as a key).

    Args:
      seeds: [G] uint64, one for each group.
      samples: K, sequences of a group.
      length: L, positions of a sequence.
    Returns:
      [L, G * K, 2] uint32.
    """
    key = (seeds >> np.uint64(32)).astype(np.uint32), seeds.astype(np.uint32)
    own = threefry(
        (key[0][:, None], key[1][:, None]),
        (np.uint32(0), np.arange(samples, dtype=np.uint32)[None]),
    )
    counters = np.arange(2 * length, dtype=np.uint32)[:, None]
    first, second = threefry(
        (own[0].reshape(1, -1), own[1].reshape(1, -1)), (np.uint32(0), counters)
    )
    return (first ^ second).reshape(length, 2, -1).swapaxes(1, 2)


def threefry(
    key: tuple[np.ndarray, np.ndarray], counter: tuple[np.ndarray | np.uint32, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Two uint32 words encrypted: `counter` with `key`; shapes broadcast."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for part in range(5):
        for rotation in ROTATIONS[part % 2]:
            x = x + y
            y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
        x = x + keys[(part + 1) % 3]
        y = y + (keys[(part + 2) % 3] + np.uint32(part + 1))
    return x, y
