"""Why an adapter is not taken, and how large one may be. Everything here is plain data; it imports nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass


class AdapterRefused(Exception):
    """An adapter that can't be served. `code` is stable; `message` says what was expected, found and to do.

    Codes: missing_config, missing_weights, pickle_only, not_regular, unreadable, incomplete, too_large, bad_json,
    bad_header, unsupported_peft_type, unsupported_field, unknown_field, bad_field, unsafe_pattern,
    unconverted_init, unknown_tensor, duplicate_tensor, untargeted_tensor, missing_half, bad_dtype, wrong_shape,
    rank_mismatch, rank_over_limit, no_matching_module, wrong_base, replaced_weight, nonfinite_weights,
    invalid_name, activation_failed, format_untried, storage_failed, storage_full, unexpected_file, duplicate_file,
    outside_root, bad_source, source_not_allowed, source_not_found, source_forbidden, source_unreachable,
    resized_vocabulary, missing_tensor, unsupported_combination, unfused_experts, overflow, no_exact_form,
    bad_composition, bad_merge, canary_failed, not_additive, not_mergeable, not_safetensors, output_exists,
    zero_effect, token_out_of_range, bad_profile, unsupported_task, bad_template, template_not_allowed,
    unusable_tokenizer, blobs_unavailable, blobs_of_another, blobs_elsewhere, blob_missing, not_applied_by_engine,
    bad_model, different_model, nothing_differs, not_extractable, output_unfinished, out_of_memory.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Limits:
    """What one adapter may ask for. Sizes are bytes; a rank is that of a single module.

    A file with a pair for each of 18,000 experts' projections has 36,000 tensors and a header of 5 MB.
    """

    max_rank: int = 256
    max_weight_bytes: int = 2 << 30
    max_header_bytes: int = 8 << 20
    max_config_bytes: int = 1 << 20
    max_tensors: int = 50_000


DEFAULT_LIMITS = Limits()
# Of what is in a store, whose size was decided when it was taken in; and of its user's own files.
TAKEN_IN = Limits(max_rank=sys.maxsize, max_weight_bytes=sys.maxsize)
