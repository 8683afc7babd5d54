"""The loops of CIDEr-D (`vision.metrics.cider`), over words and n-grams as numbers.

The tree of n-grams is a hash table [capacity, 2] int64 with linear probing: a key, node of the
shorter n-gram << 32 | word, and the n-gram's own node, side by side because they are read together.
The capacity is a power of two; an empty place holds -1 twice.
"""

import numba
import numpy as np

MAX_N = 4
SIGMA = 6.0

ROOT = 0
UNKNOWN = -1
EMPTY = np.int64(-1)
# The largest share of the table that is filled.
LOAD = 0.5


@numba.njit(cache=True, inline="always")
def _place(table, key):  # type: ignore[no-untyped-def]
    """Where a key is, or would be: multiplicative hashing, linear probing."""
    mask = len(table) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64(mixed >> np.uint64(20)) & mask
    while table[place, 0] != key and table[place, 0] != -1:
        place = (place + 1) & mask
    return place


@numba.njit(cache=True, inline="always")
def _slot(grams, first, last, gram):  # type: ignore[no-untyped-def]
    """The slot of an n-gram among grams[first:last], or the empty one that would be its."""
    mask = last - first - 1
    mixed = np.uint64(gram) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(40)) & mask
    while grams[first + slot] != gram and grams[first + slot] != UNKNOWN:
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True)
def move(table, larger):  # type: ignore[no-untyped-def]
    """Enters what a table holds into a larger one."""
    for entry in table:
        if entry[0] != -1:
            place = _place(larger, entry[0])
            larger[place, 0] = entry[0]
            larger[place, 1] = entry[1]


@numba.njit(cache=True)
def insert_all(words, starts, caption, table, size, grams):  # type: ignore[no-untyped-def]
    """Fills `grams` with nodes, made where there were none, from a caption on.

    Returns the number of nodes, and the first caption that the table has no room for.
    """
    while caption < len(starts) - 1:
        end = starts[caption + 1]
        if size + MAX_N * (end - starts[caption]) > LOAD * len(table):
            break
        for start in range(starts[caption], end):
            node = np.int64(ROOT)
            for n in range(min(MAX_N, end - start)):
                key = (node << 32) | np.int64(words[start + n])
                place = _place(table, key)
                if table[place, 0] == -1:
                    table[place, 0] = key
                    table[place, 1] = size
                    size += 1
                node = table[place, 1]
                grams[n, start] = node
        caption += 1
    return size, caption


@numba.njit(cache=True)
def count_documents(grams, starts, images, frequencies):  # type: ignore[no-untyped-def]
    """Adds 1 for each image that an n-gram occurs in; an image's captions stand together."""
    last = np.full(len(frequencies), -1, np.int32)
    for caption in range(len(images)):
        for start in range(starts[caption], starts[caption + 1]):
            for n in range(MAX_N):
                gram = grams[n, start]
                if gram >= 0 and last[gram] != images[caption]:
                    last[gram] = images[caption]
                    frequencies[gram] += 1


@numba.njit(cache=True)
def count_references(grams, starts, images, idf, unknown_idf):  # type: ignore[no-untyped-def]
    """Slots, n-grams, counts, norms and lengths as `CookedReferences` has them."""
    n_images, n_captions = len(images) - 1, len(starts) - 1
    slots = np.zeros(n_images + 1, np.int64)
    first_count = np.zeros(n_images + 1, np.int64)
    for image in range(n_images):
        some = MAX_N * (starts[images[image + 1]] - starts[images[image]])
        size = 1
        while size <= some:
            size *= 2
        slots[image + 1] = slots[image] + size
        captions = images[image + 1] - images[image]
        first_count[image + 1] = first_count[image] + size * captions
    all_grams = np.full(slots[n_images], np.int32(UNKNOWN))
    order = np.zeros(slots[n_images], np.int8)  # n - 1 of each n-gram
    counts = np.zeros(first_count[n_images], np.uint16)
    norms = np.zeros((n_captions, MAX_N))
    lengths = np.zeros(n_captions, np.int32)
    for image in range(n_images):
        first, last = slots[image], slots[image + 1]
        captions = images[image + 1] - images[image]
        base = first_count[image]
        for column in range(captions):
            caption = images[image] + column
            lengths[caption] = max(0, starts[caption + 1] - starts[caption] - 1)
            for start in range(starts[caption], starts[caption + 1]):
                for n in range(MAX_N):
                    if grams[n, start] >= 0:
                        slot = _slot(all_grams, first, last, grams[n, start])
                        all_grams[first + slot] = grams[n, start]
                        order[first + slot] = n
                        counts[base + slot * captions + column] += 1
            for slot in range(last - first):
                gram = all_grams[first + slot]
                if gram >= 0:
                    weight = idf[gram] if gram < len(idf) else unknown_idf
                    weight *= counts[base + slot * captions + column]
                    norms[caption, order[first + slot]] += weight * weight
            for n in range(MAX_N):
                norms[caption, n] = np.sqrt(norms[caption, n])
    return slots, all_grams, first_count, counts, norms, lengths


@numba.njit(cache=True)
def score_candidates(  # type: ignore[no-untyped-def]
    words,
    starts,
    rows,
    table,
    idf,
    unknown_idf,
    images,
    slots,
    all_grams,
    first_count,
    all_counts,
    norms,
    lengths,
):
    """[candidates] float64; an n-gram counts at its first place, which keeps sums exact."""
    scores = np.zeros(len(rows))
    longest, most = 0, 0
    for candidate in range(len(rows)):
        longest = max(longest, starts[candidate + 1] - starts[candidate])
        most = max(most, images[rows[candidate] + 1] - images[rows[candidate]])
    matched, penalties = np.zeros(most), np.zeros(most)
    same_as = np.zeros((2, longest), np.int32)  # first place with an equal n-gram, n - 1 and n
    found = np.zeros(longest, np.int64)  # node of the n-gram at each place
    times = np.zeros(longest, np.int32)
    for candidate in range(len(rows)):
        begin, length = starts[candidate], starts[candidate + 1] - starts[candidate]
        image = rows[candidate]
        first_reference = images[image]
        captions = images[image + 1] - first_reference
        first, last, base = slots[image], slots[image + 1], first_count[image]
        for column in range(captions):
            difference = float(max(0, length - 1) - lengths[first_reference + column])
            penalties[column] = np.exp(-(difference**2) / (2 * SIGMA**2))
        total = 0.0
        found[:length] = ROOT
        same_as[0, :length] = 0
        for n in range(min(MAX_N, length)):
            before, now = same_as[n % 2], same_as[(n + 1) % 2]
            squares = 0.0
            matched[:] = 0.0
            places = length - n
            times[:places] = 0
            for place in range(places):
                word = words[begin + place + n]
                now[place] = place
                for other in range(place):
                    if (
                        now[other] == other
                        and before[other] == before[place]
                        and words[begin + other + n] == word
                    ):
                        now[place] = other
                        break
                times[now[place]] += 1
                if found[place] >= 0:
                    # An empty place holds node -1, too: an unknown n-gram.
                    found[place] = table[_place(table, (found[place] << 32) | np.int64(word)), 1]
            for place in range(places):
                if now[place] != place:
                    continue
                gram = found[place]
                weight_of_one = idf[gram] if 0 <= gram < len(idf) else unknown_idf
                weight = times[place] * weight_of_one
                squares += weight * weight
                if gram < 0:
                    continue
                slot = _slot(all_grams, first, last, gram)
                if all_grams[first + slot] != gram:
                    continue
                for column in range(captions):
                    theirs = all_counts[base + slot * captions + column] * weight_of_one
                    matched[column] += min(weight, theirs) * theirs
            norm = np.sqrt(squares)
            for column in range(captions):
                their_norm = norms[first_reference + column, n]
                if norm != 0 and their_norm != 0:
                    total += matched[column] / (norm * their_norm) * penalties[column]
        scores[candidate] = 10.0 * total / MAX_N / captions
    return scores
