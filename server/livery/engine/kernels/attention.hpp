// Attention over a paged KV cache for callers that have a team of threads already.
#pragma once

#include <cstdint>

#include "team.hpp"

namespace livery {

// Mirrored by native.py.
struct Paged {
  const float* q;
  int64_t q_row, q_head;  // strides
  const float *k, *v;
  const int32_t* tables;
  int64_t table_row;
  const int32_t* starts;  // first query row of each sequence and the end; null: one row each
  const int32_t* lens;
  float* out;
  int64_t sequences, heads, kv_heads, dim, v_dim, block_size, blocks, max_blocks, window;
  float scale, softcap;
};

// The first sequence whose table, length and rows do not fit together, or -1.
int64_t misfit(const Paged& p);

// To be called by every thread of a team, all with the same arguments, which fit; the caller waits before reading out.
void paged_attention(const Paged& p, SharedRoom& room);

}  // namespace livery
