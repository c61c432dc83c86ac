"""A step's layout as bytes: what rank 0 tells the others before every step."""

from array import array

from sloserve.model.batch import Layout

_PARTS = ("ids", "positions", "slots", "keep", "begins", "contexts", "page_begins", "pages")


def packed(layout: Layout) -> bytes:
    """
    All that a forward pass needs, 8 bytes per number: three for a token, one for a page, three for
    a row. Who samples what is rank 0's own business and stays there.
    """
    parts = [getattr(layout, name) for name in _PARTS]
    numbers = array("q", [layout.num_decodes, *map(len, parts)])
    for part in parts:
        numbers.extend(part)
    return numbers.tobytes()


def unpacked(body: bytes) -> Layout:
    """The layout that was packed, for a forward pass."""
    numbers = array("q")
    numbers.frombytes(body)
    num_decodes, *lengths = numbers[: 1 + len(_PARTS)]
    parts: list[list[int]] = []
    begin = 1 + len(_PARTS)
    for length in lengths:
        parts.append(numbers[begin : begin + length].tolist())
        begin += length
    ids, positions, slots, keep, begins, contexts, page_begins, pages = parts
    return Layout(
        ids, positions, slots, keep, begins, contexts, page_begins, pages,
        num_decodes=num_decodes, first=[], sampled=[], prompts=[],
    )  # fmt: skip
