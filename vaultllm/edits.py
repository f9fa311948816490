"""How many slips of the hand lie between two words. Pure; knows nothing about what the words are."""

from __future__ import annotations


def distance(one: str, other: str, most: int) -> int | None:
    """Letters left out, put in, changed or swapped with the next one, to get from one word to the other; None beyond `most`.

    The optimal string alignment of Damerau (1964) and Levenshtein (1966), within a band of `most` (Ukkonen 1985): O(most x length).
    """
    if len(one) < len(other):
        one, other = other, one
    if len(one) - len(other) > most:
        return None
    if one == other:
        return 0
    far = most + 1
    width = len(other)
    before: list[int] = []
    row = [column if column <= most else far for column in range(width + 1)]
    for i, letter in enumerate(one, 1):
        low, high = max(1, i - most), min(width, i + most)
        new = [far] * (width + 1)
        new[0] = min(i, far)
        for j in range(low, high + 1):
            mate = other[j - 1]
            cost = row[j - 1] if letter == mate else 1 + min(row[j - 1], row[j], new[j - 1])
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == mate:
                cost = min(cost, before[j - 2] + 1)
            new[j] = min(cost, far)
        if min(new) > most and min(row) > most:
            return None
        before, row = row, new
    return row[width] if row[width] <= most else None
