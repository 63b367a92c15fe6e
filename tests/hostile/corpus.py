"""Every hostile or broken adapter of the corpus, by group, with the refusal that each must get.

for case in CASES:
    case.build(folder / "adapter")     # makes the files
    case.code, case.says               # what must come of it
"""

from __future__ import annotations

from hostile import config_cases, file_cases, header_cases, type_cases, weight_cases, work_cases

CASES = (
    *file_cases.CASES,
    *header_cases.CASES,
    *config_cases.CASES,
    *weight_cases.CASES,
    *type_cases.CASES,
    *work_cases.CASES,
)
