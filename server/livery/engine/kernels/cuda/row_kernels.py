"""What lies between the products of a decoder, in Triton: norms, rotary positions with the cache's writes, SwiGLU."""

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    x,
    residual,
    weight,
    out,
    eps,
    width,
    heads,
    x_row,
    x_head,
    residual_row,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row and head; `out` is contiguous. The sum with the residual goes back to x, rounded."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    inside = d < width
    at = x + row * x_row + head * x_head + d
    wide = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        added = tl.load(residual + row * residual_row + d, mask=inside, other=0.0).to(tl.float32)
        rounded = (wide + added).to(x.dtype.element_ty)
        tl.store(at, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    normed = (wide * scale).to(x.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + (row * heads + head) * width + d, (normed * gain).to(out.dtype.element_ty), mask=inside)


@triton.jit
def rope_kernel(
    q,
    k,
    v,
    cos,
    sin,
    k_cache,
    v_cache,
    slots,
    heads,
    kv_heads,
    half,
    v_width,
    q_row,
    k_row,
    v_row,
    q_blocks,
    k_blocks,
    H: tl.constexpr,
    HALF: tl.constexpr,
    DV: tl.constexpr,
):
    """H heads of one row: first those of q, then k, then v, as the second program id counts.

    k goes back turned and into the cache; v into the cache only. Heads of a row lie side by side.
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    if block < q_blocks + k_blocks:
        i = tl.arange(0, HALF)
        pair = i < half
        c = tl.load(cos + row * half + i, mask=pair, other=0.0).to(tl.float32)[None, :]
        s = tl.load(sin + row * half + i, mask=pair, other=0.0).to(tl.float32)[None, :]
        is_q = block < q_blocks
        head = tl.where(is_q, block, block - q_blocks) * H + tl.arange(0, H)
        inside = (head < tl.where(is_q, heads, kv_heads))[:, None] & pair[None, :]
        places = head[:, None] * (2 * half) + i[None, :]
        if is_q:
            at = q + row * q_row + places
            first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
            tl.store(at, (first * c - second * s).to(q.dtype.element_ty), mask=inside)
            tl.store(at + half, (second * c + first * s).to(q.dtype.element_ty), mask=inside)
        else:
            at = k + row * k_row + places
            first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
            turned = (first * c - second * s).to(k.dtype.element_ty)
            other = (second * c + first * s).to(k.dtype.element_ty)
            kept = k_cache + slot * kv_heads * (2 * half) + places
            tl.store(at, turned, mask=inside)
            tl.store(at + half, other, mask=inside)
            tl.store(kept, turned.to(k_cache.dtype.element_ty), mask=inside)
            tl.store(kept + half, other.to(k_cache.dtype.element_ty), mask=inside)
    else:
        own = (block - q_blocks - k_blocks) * H + tl.arange(0, H)
        d = tl.arange(0, DV)
        here = (own < kv_heads)[:, None] & (d < v_width)[None, :]
        offsets = own[:, None] * v_width + d[None, :]
        values = tl.load(v + row * v_row + offsets, mask=here, other=0.0)
        tl.store(v_cache + slot * kv_heads * v_width + offsets, values.to(v_cache.dtype.element_ty), mask=here)


@triton.jit
def silu_mul_kernel(gate_up, out, width, gate_up_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < width
    at = gate_up + row * gate_up_row + d
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + d, (activated * up).to(out.dtype.element_ty), mask=inside)
