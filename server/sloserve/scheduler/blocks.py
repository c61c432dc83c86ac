"""
Paged KV accounting: who owns which block, and which cached blocks can be found again.

A block is exactly one of: free (nothing worth keeping), cached (full and findable by its hash,
owned by nobody, given up in least-recently-used order), owned (by one request or more; findable
as well when it was published). Only full computed blocks are published, and nobody writes to a
published block: sharing never needs a copy.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference counts and the prefix cache of `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, *, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_queried_tokens = 0
        """Prompt tokens that were looked up in the prefix cache."""
        self.num_hit_tokens = 0
        """Those of them that were found."""
        self.num_evictions = 0
        self.version = 0
        """Changes whenever a lookup could answer differently than before."""
        self._owners = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached, unowned; oldest first
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be had now: free, or cached and unowned."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that hold a findable prefix and belong to nobody."""
        return len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def match(self, chain: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `chain`. Takes nothing."""
        found = []
        for digest in chain:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more owner of blocks that `match` found."""
        for block in blocks:
            if self._owners[block] == 0:
                del self._idle[block]
            self._owners[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with unknown content; None (and nothing taken) if there are too few."""
        if count > self.num_free:
            return None
        taken = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._owners[block] = 1
            taken.append(block)
        return taken

    def num_freed_by(self, leaving: Iterable[Sequence[int]]) -> int:
        """Blocks that become free when all these block lists are released."""
        counted = Counter(block for blocks in leaving for block in blocks)
        return sum(self._owners[block] == count for block, count in counted.items())

    def release(self, blocks: Sequence[int]) -> None:
        """Give up ownership. The tail goes first, so that the cache forgets tails before heads."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def publish(self, block: int, digest: bytes) -> None:
        """Make a full, computed, owned block findable. A twin with the same hash stays first."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest
            self.version += 1

    def forget_cached(self) -> None:
        """Drop every cached block that nobody owns (the memory behind them was lost)."""
        while self._idle:
            self._free.append(self._evict())

    def check_integrity(self, owners: Iterable[Sequence[int]] | None = None) -> None:
        """
        Every block is free, cached or owned; with `owners` (the block lists of all requests)
        the counts equal the owners. Anything else is a bug, and asserts.
        """
        free, idle = set(self._free), set(self._idle)
        owned = {block for block, count in enumerate(self._owners) if count > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert min(self._owners, default=0) >= 0, "a block was released too often"
        assert not free & idle, f"free and cached: {free & idle}"
        assert not free & owned, f"free and owned: {free & owned}"
        assert not idle & owned, f"unowned and owned: {idle & owned}"
        assert len(free) + len(idle) + len(owned) == self.num_blocks, "blocks were lost"
        assert not free & set(self._hash_of), "a free block can be found by its hash"
        assert idle <= set(self._hash_of), "a cached block can't be found"
        assert {digest: block for block, digest in self._hash_of.items()} == self._block_of
        if owners is not None:
            counted = Counter(block for blocks in owners for block in blocks)
            held = {block: self._owners[block] for block in owned}
            assert held == dict(counted), f"counts {held} differ from owners {dict(counted)}"

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        self.num_evictions += 1
        self.version += 1
        return block
