"""What a GGUF file holds in forms that nothing multiplies with is told, with its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

from livery.gguf_forms import forms_widened, widened
from quantization.gguf_files import q6_k

ROWS, COLUMNS = 64, 512


def written(file: Path, *kinds: str) -> Path:
    """A file with a tensor of each kind; those of K-quants have bytes that nobody reads."""
    writer = GGUFWriter(file, "llama")
    for at, name in enumerate(kinds):
        kind = GGMLQuantizationType[name]
        if name.endswith("_K"):
            numbers, nbytes = GGML_QUANT_SIZES[kind]
            data = np.zeros((ROWS, COLUMNS // numbers * nbytes), np.uint8)
        else:
            data = quantize(np.ones((ROWS, COLUMNS), np.float32), kind)
        writer.add_tensor(f"blk.{at}.ffn_up.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_blocks_within_blocks_are_widened(tmp_path: Path) -> None:
    file = written(tmp_path / "one.Q4_K_M.gguf", "F32", "Q4_K", "Q4_K", "Q6_K", "Q8_0")
    found = forms_widened(file)
    assert dict(found.forms) == {"Q4_K": 2, "Q6_K": 1}
    assert found.numbers == 3 * ROWS * COLUMNS
    assert found.nbytes == ROWS * COLUMNS // 256 * (144 + 144 + 210)
    told = widened(str(file))
    assert "one.Q4_K_M.gguf has tensors whose form nothing here multiplies with (2 in Q4_K, 1 in Q6_K)" in told
    assert f"{4 * found.numbers / 1e6:,.0f} MB in float32" in told


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_what_is_held_in_its_own_bits_is_not_told(kind: str, tmp_path: Path) -> None:
    """Those kinds of which test_kernels_weights shows it."""
    assert widened(str(written(tmp_path / "one.gguf", kind))) == ""


def test_the_form_that_the_table_writes_is_ggml_s() -> None:
    """tests/quantization/table.py has a file in Q6_K, which the library reads and doesn't write."""
    numbers = np.random.default_rng(0).standard_normal((3, COLUMNS)).astype(np.float32)
    numbers[1, :16] = 0
    read = dequantize(q6_k(numbers), GGMLQuantizationType.Q6_K)
    assert np.abs(read - numbers).max() < np.abs(numbers).max() / 31


def test_other_models_are_no_files(tmp_path: Path) -> None:
    assert widened("smollm2-135m-instruct") == ""
    assert widened(str(tmp_path)) == ""
