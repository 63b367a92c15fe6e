// The layers of a decoder of the Llama family in one call, by one team of threads that never goes to sleep between
// them: RMSNorm, q/k/v, rotary positions, paged attention, output, RMSNorm, gate and up, activation, down.
//
// Made of the same kernels that the layers can be called by one by one, so that both ways give the same bits.
#include <algorithm>

#include "attention.hpp"
#include "linear.hpp"
#include "lora.hpp"
#include "rows.hpp"
#include "tiles.hpp"

namespace livery {

// The structs are mirrored by decoder/native.py.
struct Projection {
  const char* weight;
  int64_t layout;     // of the weight
  const float* bias;  // or null
  int64_t out, in;
  int64_t group;  // the projection group's index in each adapter's table
};

struct Layer {
  const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two null where heads have no norm
  float input_eps, post_eps, q_eps, k_eps;
  Projection qkv, output, gate_up, down;
  float *k_cache, *v_cache;
  int64_t window;
  float scaling;
};

// What an adapter does to one projection group: each null where it doesn't.
struct GroupChange {
  const LoraGroup* low_rank;
  const float *gain, *shift;  // [out]
};

// Rows start to end run under an adapter, whose changes the table lists by projection group.
struct AdapterRows {
  int64_t start, end;
  const GroupChange* changes;
};

struct Step {
  const Layer* layers;
  int64_t n_layers, rows, hidden, heads, kv_heads, dim, features, block_size, blocks;
  float* x;                // [rows, hidden]: embeddings in, the sum of all blocks out
  float *wide, *normed;    // [rows, widest product], [rows, widest input]
  const float *cos, *sin;  // [rows, dim / 2]
  const int64_t* slots;    // [rows]
  const int32_t* tables;
  int64_t table_row, max_blocks;
  const int32_t *starts, *lens;
  int64_t sequences;
  const AdapterRows* adapters;
  int64_t n_adapters;
};

// What the threads of one step share.
struct Team {
  const Step& step;
  SharedRoom room;

  void meet() { room.barrier.wait(omp_get_num_threads()); }

  // y = W x + adapters' products, for x and y with rows of the given widths.
  void project(const Projection& p, const float* x, float* y) {
    livery_linear(x, p.in, p.weight, p.layout, p.bias, y, step.rows, p.out, p.in);
    meet();
    thread_local std::vector<Segment> segments;
    segments.clear();
    bool scaled = false;
    for (const AdapterRows* a = step.adapters; a != step.adapters + step.n_adapters; ++a) {
      const GroupChange& change = a->changes[p.group];
      if (change.low_rank) segments.push_back({a->start, a->end, change.low_rank});
      scaled |= change.gain || change.shift;
    }
    if (!segments.empty()) {
      grouped_lora({x, p.in, y, p.out}, segments.data(), segments.size(), room);
      meet();
    }
    if (scaled) {
      scale(p, y);
      meet();
    }
  }

  void scale(const Projection& p, float* y) {
    for (const AdapterRows* a = step.adapters; a != step.adapters + step.n_adapters; ++a) {
      const GroupChange& change = a->changes[p.group];
#pragma omp for schedule(static) nowait
      for (int64_t row = a->start; row < a->end; ++row) affine_row(y + row * p.out, change.gain, change.shift, p.out);
    }
  }

  // normed = norm(x += added), for added [rows, hidden] or null.
  void norm(const float* added, const float* weight, float eps) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < step.rows; ++row) {
      const int64_t at = row * step.hidden;
      rms_norm_row(step.x + at, added ? added + at : nullptr, weight, eps, step.hidden, step.normed + at);
    }
    meet();
  }

  void place(const Layer& layer) {
    const int64_t q = step.heads * step.dim, kv = step.kv_heads * step.dim;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < step.rows; ++row) {
      float* at = step.wide + row * layer.qkv.out;
      auto norm_heads = [&](float* x, int64_t heads, const float* weight, float eps) {
        for (float* end = x + heads * step.dim; x != end; x += step.dim)
          rms_norm_row(x, nullptr, weight, eps, step.dim, x);
      };
      if (layer.q_norm) norm_heads(at, step.heads, layer.q_norm, layer.q_eps);
      if (layer.k_norm) norm_heads(at + q, step.kv_heads, layer.k_norm, layer.k_eps);
      const int64_t slot = step.slots[row] * kv, angle = row * (step.dim / 2);
      rope_row({at, at + q, at + q + kv, step.cos + angle, step.sin + angle, layer.k_cache + slot,
                layer.v_cache + slot, step.heads, step.kv_heads, step.dim, step.dim});
    }
    meet();
  }

  Paged paged(const Layer& l) const {
    return {step.wide, l.qkv.out, step.dim,      l.k_cache,       l.v_cache,       step.tables,   step.table_row,
            step.starts, step.lens, step.normed, step.sequences,  step.heads,      step.kv_heads, step.dim,
            step.dim,  step.block_size, step.blocks, step.max_blocks, l.window,    l.scaling,     0.0f};
  }

  void activate(const Layer& layer) {
    // Stretches of a row, so that threads have shares of few rows as well.
    constexpr int64_t kStretch = 16 * kLanes;
    const int64_t f = step.features, stretches = (f + kStretch - 1) / kStretch;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < step.rows * stretches; ++i) {
      const int64_t row = i / stretches, begin = i % stretches * kStretch;
      silu_mul_row(step.wide + row * layer.gate_up.out, f, begin, std::min(f, begin + kStretch), step.normed + row * f);
    }
    meet();
  }

  void run() {
    const float* added = nullptr;
    for (const Layer* layer = step.layers; layer != step.layers + step.n_layers; ++layer) {
      norm(added, layer->input_norm, layer->input_eps);
      project(layer->qkv, step.normed, step.wide);
      place(*layer);
      paged_attention(paged(*layer), room);
      meet();
      project(layer->output, step.normed, step.wide);
      norm(step.wide, layer->post_norm, layer->post_eps);
      project(layer->gate_up, step.normed, step.wide);
      activate(*layer);
      project(layer->down, step.normed, step.wide);
      added = step.wide;
    }
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < step.rows * step.hidden; ++i) step.x[i] += added[i];
  }
};

bool fits(const Step& step) {
  for (int64_t row = 0; row < step.rows; ++row)
    if (step.slots[row] < 0 || step.slots[row] >= step.blocks * step.block_size) return false;
  for (const AdapterRows* a = step.adapters; a != step.adapters + step.n_adapters; ++a)
    if (a->start < 0 || a->end < a->start || a->end > step.rows) return false;
  return true;
}

}  // namespace livery

// Returns -2 where a slot or an adapter's rows don't fit, the first sequence that doesn't fit its table, or -1.
extern "C" int64_t livery_decoder(const livery::Step* step) {
  livery::Team team{*step, {}};
  if (!livery::fits(*step)) return -2;
  if (const int64_t sequence = livery::misfit(team.paged(step->layers[0])); sequence >= 0) return sequence;
  livery::in_team(omp_get_max_threads(), [&] { team.run(); });
  return -1;
}
