// Grouped low-rank products for callers that have a team of threads already.
#pragma once

#include <cstdint>

#include "team.hpp"

namespace livery {

// Mirrored by group.py.
struct LoraSlice {
  const void* b;  // [rank, out]
  int64_t first_rank, rank, out, offset;
};

struct LoraGroup {
  const void* a;             // [total_rank, in]
  const float* rank_scales;  // [total_rank]
  const LoraSlice* slices;
  int64_t in, total_rank, n_slices, is_bf16;
};

struct Segment {
  int64_t start, end;
  const LoraGroup* group;
};

struct Operands {
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
};

// Adds each segment's product to its rows of y. To be called by every thread of a team, all with the same arguments;
// the caller waits before reading y.
void grouped_lora(const Operands& op, const Segment* segments, int64_t n, SharedRoom& room);

}  // namespace livery
