// What a decoder computes between its matrix products, row by row: RMSNorm, rotary positions, the gated activation.
//
// A row's result depends on nothing but that row, and is made by the same machine code whoever calls: compiled into
// several places, the same expression may be contracted to multiply-adds in several ways.
#pragma once

#include <cstdint>

namespace livery {

// y = x / rms(x) * weight over d values; x += added first where given. x and y may be the same memory.
void rms_norm_row(float* x, const float* added, const float* weight, float eps, int64_t d, float* y);

struct RopeRow {
  float *q, *k;
  const float* v;
  const float *cos, *sin;   // [dim / 2]
  float *k_slot, *v_slot;
  int64_t heads, kv_heads, dim, v_dim;
};

// Turns the pairs (i, i + dim / 2) of each head of q and k, and puts k and v into their slot.
void rope_row(const RopeRow& row);

// y[i] = silu(gate_up[i]) * gate_up[f + i] for i from begin, a multiple of the vector width, to end.
void silu_mul_row(const float* gate_up, int64_t f, int64_t begin, int64_t end, float* y);

// y = y * gain + shift over n values, each where given: two roundings, as torch makes them.
void affine_row(float* y, const float* gain, const float* shift, int64_t n);

}  // namespace livery
