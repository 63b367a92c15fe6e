// The linear product for callers that have a team of threads already: every thread of it calls with the same arguments,
// and the caller waits before y is read. See linear.cpp.
#pragma once

#include <cstdint>

extern "C" void livery_linear(const float* x, int64_t x_stride, const char* w, int64_t layout, const float* bias,
                              float* y, int64_t m, int64_t n, int64_t k);
