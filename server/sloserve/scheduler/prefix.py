"""
The chained hash of full blocks, by which prefixes are found again.

    hash(0) = H(salt)        hash(i) = H(hash(i-1), tokens of block i)

Equal hashes mean equal tokens from the very start under the same salt (model, adapter, extra
keys). H is BLAKE2b with 16 bytes: prompts come from strangers, so a collision must not be theirs
to choose.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def salt_of(salt: str, *, adapter: str) -> str:
    """
    The extra key of a request's hashes: the client's `salt` and the adapter, each told apart from
    the other whatever a client sends. Keys and values computed under an adapter are its own.
    """
    return f"{len(adapter)}:{adapter}{salt}" if adapter or salt else ""


def extend_chain(
    chain: list[bytes], tokens: Sequence[int], *, num_tokens: int, block_size: int, salt: str
) -> None:
    """Append to `chain` the hash of every full block of the first `num_tokens` tokens."""
    parent = chain[-1] if chain else blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()
    for start in range(len(chain) * block_size, num_tokens - block_size + 1, block_size):
        data = array("q", tokens[start : start + block_size]).tobytes()
        parent = blake2b(parent + data, digest_size=DIGEST_BYTES).digest()
        chain.append(parent)
