"""The kernels' normal numbers, one at a time in plain integers and float64.

Threefry-4x32 with 20 rounds: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011. Normals: G. E. P. Box,
M. E. Muller, "A note on the generation of random normal deviates", 1958.
"""

import math

_MASK = 0xFFFFFFFF
_ROTATIONS = (
    (10, 26),
    (11, 21),
    (13, 27),
    (23, 5),
    (6, 20),
    (17, 11),
    (25, 10),
    (18, 20),
)


def threefry(counter, key, rounds=20):
    """Return four 32-bit words for four words of counter and four of key."""
    keys = [*key, 0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3]]
    words = [(c + k) & _MASK for c, k in zip(counter, key, strict=True)]
    for number in range(rounds):
        pairs = ((0, 1), (2, 3)) if number % 2 == 0 else ((0, 3), (2, 1))
        for (a, b), bits in zip(pairs, _ROTATIONS[number % 8], strict=True):
            words[a] = (words[a] + words[b]) & _MASK
            turned = (words[b] << bits | words[b] >> (32 - bits)) & _MASK
            words[b] = turned ^ words[a]
        if number % 4 == 3:
            s = number // 4 + 1
            words = [(w + keys[(s + i) % 5]) & _MASK for i, w in enumerate(words)]
            words[3] = (words[3] + s) & _MASK
    return words


def normal(seed, step, place):
    """Return the normal number of one place of the whole vector.

    A tile of 1024 places takes 256 counters; the four words of a counter make the
    normals of places that lie 256 apart.
    """
    tile, within = divmod(place, 1024)
    quarter, i = divmod(within, 256)
    count, seed, step = tile * 256 + i, seed % 2**64, step % 2**64
    counter = count & _MASK, count >> 32 & _MASK, step & _MASK, step >> 32
    words = threefry(counter, (seed & _MASK, seed >> 32, 0, 0))
    first, angle = words[:2] if quarter < 2 else words[2:]
    radius = math.sqrt(-2 * math.log((first // 2 + 0.5) / 2**31))
    turned = math.pi / 2 * (angle // 4) / 2**30
    if quarter % 2 == 0:
        return radius * math.cos(turned) * (-1) ** (angle & 1)
    return radius * math.sin(turned) * (-1) ** (angle >> 1 & 1)
