"""How much a run measures. One place, so that a test can run everything small."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens, rows and counts of every measurement.

    A row's value is taken over rounds, in each of which every variant has `turns` turns. Groups have as many rounds as
    make the whole run last some ten minutes on two cores.
    """

    rounds: int = 5
    prefill_rounds: int = 3
    option_rounds: int = 3
    serving_rounds: int = 3
    turns: int = 5
    rank: int = 16
    context: int = 128  # tokens of each decoding sequence
    decode_rows: tuple[int, ...] = (1, 4, 16, 32, 64, 128)
    mixed_rows: tuple[int, ...] = (8, 16, 32)
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    ranked_rows: int = 16
    prompts: tuple[int, ...] = (256, 512, 2048)
    check_tokens: int = 24  # of each answer that is compared
    check_prompt: int = 32
    cold_prompt: int = 512
    cold_requests: int = 12  # versions asked for in turn, more than fit
    fitting: int = 8  # adapters that the small engine's device memory holds
    streams: int = 8  # running beside cold loads
    stream_tokens: int = 160
    loads_per_second: float = 10.0
    hot_factor: int = 10
    hot_requests: int = 40
    hot_streams: int = 4
    known: int = 1000
    known_rank: int = 2
    waves: int = 4
    wave_rows: int = 16
    wave_tokens: int = 24
    option_rows: tuple[int, ...] = (1, 16)
    passage: int = 32  # tokens, `repeats` times in the prompt
    repeats: int = 3
    copied: int = 64
    held_rows: int = 16
    held_tokens: int = 96  # of each answer that is held to a schema

    def with_rounds(self, rounds: int) -> Sizes:
        """The same with as many rounds in every group."""
        return replace(self, rounds=rounds, prefill_rounds=rounds, option_rounds=rounds, serving_rounds=rounds)

    @property
    def all_decode_rows(self) -> tuple[int, ...]:
        return tuple(sorted({*self.decode_rows, *self.mixed_rows}))
