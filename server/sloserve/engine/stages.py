"""Which stage of its answer a request is in, by the markers seen in the output."""

from collections.abc import Sequence

from sloserve.engine.detokenize import Detokenizer
from sloserve.engine.tokenizer import Tokenizer
from sloserve.slo import Stage


class StageTracker:
    """
    A stage ends with the token that completes its marker (`Stage.until`); that token still
    belongs to it. A marker that is one token of the model (`</think>`, perhaps special and not
    shown) is recognised by its id, any other by the text, special tokens included.
    """

    __slots__ = ("_detokenizer", "_marker_id", "_stages", "_tail", "_tokenizer", "stage")

    def __init__(self, stages: Sequence[Stage], tokenizer: Tokenizer) -> None:
        self.stage = 0
        """Stage of the coming token."""
        self._stages = stages
        self._tokenizer = tokenizer
        self._marker_id: int | None = None
        self._detokenizer: Detokenizer | None = None
        self._tail = ""
        self._look_for_next()

    def push(self, token_id: int) -> tuple[int, int | None]:
        """(the stage of this token, the coming token's stage if this one ended a stage)."""
        stage = self.stage
        if (self._marker_id is None and self._detokenizer is None) or not self._ends(token_id):
            return stage, None
        self.stage += 1
        self._look_for_next()
        return stage, self.stage

    def _ends(self, token_id: int) -> bool:
        if self._marker_id is not None:
            return token_id == self._marker_id
        assert self._detokenizer is not None
        marker = self._stages[self.stage].until
        assert marker is not None
        text = self._tail + self._detokenizer.push(token_id)
        self._tail = text[-(len(marker) - 1) :] if len(marker) > 1 else ""
        return marker in text

    def _look_for_next(self) -> None:
        self._marker_id, self._detokenizer, self._tail = None, None, ""
        is_last = self.stage >= len(self._stages) - 1
        marker = None if is_last else self._stages[self.stage].until
        if not marker:
            return
        ids = self._tokenizer.encode(marker, add_special=False)
        if len(ids) == 1:
            self._marker_id = ids[0]
        else:
            self._detokenizer = Detokenizer(self._tokenizer, skip_special=False)
