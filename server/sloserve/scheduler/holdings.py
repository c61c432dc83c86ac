"""Which request holds which KV blocks: starting, growing, giving up, and prefixes found again."""

from sloserve.scheduler.blocks import BlockPool
from sloserve.scheduler.prefix import extend_chain
from sloserve.scheduler.request import Request, Status


class Holdings:
    """
    The blocks of every request, with `request.num_computed` and its row kept in step.

    A request is in `unstarted` (status waiting, no blocks) or runs (blocks, perhaps none yet).
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.unstarted: dict[int, Request] = {}
        self._matched_version = -1

    def add(self, request: Request) -> None:
        """A request that holds nothing yet."""
        self.unstarted[request.id] = request
        self._matched_version = -1

    def start(self, request: Request) -> None:
        """Take the cached prefix, and begin to hold blocks."""
        del self.unstarted[request.id]
        request.move(Status.RUNNING)
        row = request.row
        if request.reuse_prefix:
            request.blocks = self._cached_prefix(request)
            self.pool.share(request.blocks)
        request.num_computed = row.num_computed = len(request.blocks) * self.pool.block_size
        request.num_published = row.num_blocks = len(request.blocks)

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Hold enough blocks for the first `num_tokens` tokens. False, and no change: too few."""
        missing = -(-num_tokens // self.pool.block_size) - len(request.blocks)
        if missing > 0:
            taken = self.pool.allocate(missing)
            if taken is None:
                return False
            request.blocks += taken
            request.row.num_blocks = len(request.blocks)
        return True

    def computed(self, request: Request, num_tokens: int) -> None:
        """The first `num_tokens` tokens are computed: publish the blocks that became full."""
        request.num_computed = request.row.num_computed = num_tokens
        full = num_tokens // self.pool.block_size
        if request.reuse_prefix and full > request.num_published:
            self._extend_chain(request)
            for index in range(request.num_published, full):
                self.pool.publish(request.blocks[index], request.chain[index])
            request.num_published = full

    def give_up(self, request: Request) -> None:
        """Preempted: drop the blocks, keep the tokens; full blocks stay findable for a while."""
        self.release(request)
        request.move(Status.WAITING)
        request.num_computed = request.row.num_computed = 0
        self.add(request)

    def release(self, request: Request) -> None:
        """Drop the blocks of a request that is over."""
        self.unstarted.pop(request.id, None)
        self.pool.release(request.blocks)
        request.blocks = []
        request.row.num_blocks = 0

    def match_prefixes(self) -> None:
        """Write into the rows of the unstarted what they would find in the cache now."""
        if self._matched_version == self.pool.version:
            return
        self._matched_version = self.pool.version
        for request in self.unstarted.values():
            if request.reuse_prefix:
                num_found = len(self._cached_prefix(request))
                request.row.num_computed = num_found * self.pool.block_size

    def check_integrity(self, requests: dict[int, Request]) -> None:
        """Blocks, status and rows of the live requests agree. Asserts."""
        for request in requests.values():
            row, held = request.row, len(request.blocks)
            assert (request.status is Status.WAITING) == (request.id in self.unstarted)
            assert request.status is Status.RUNNING or held == 0
            assert request.num_computed <= held * self.pool.block_size
            assert request.num_computed < len(request.tokens)
            assert (row.num_known, row.num_output) == (len(request.tokens), request.num_output)
            if request.status is Status.RUNNING:
                assert (row.num_computed, row.num_blocks) == (request.num_computed, held)
        assert self.unstarted.keys() <= requests.keys()

    def _cached_prefix(self, request: Request) -> list[int]:
        """Blocks of the longest cached prefix that leaves at least one token to compute."""
        self._extend_chain(request)
        usable = (len(request.tokens) - 1) // self.pool.block_size
        return self.pool.match(request.chain[:usable])

    def _extend_chain(self, request: Request) -> None:
        extend_chain(
            request.chain,
            request.tokens,
            num_tokens=len(request.tokens),
            block_size=self.pool.block_size,
            salt=request.cache_salt,
        )
