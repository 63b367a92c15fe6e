// How kernels share their work among threads: each opens a team of its own, or joins the one it is called from.
//
// A kernel shares its loops out with `omp for ... nowait` inside in_team, never with `omp parallel for`. Called by one
// thread it then wakes others; called by every thread of a team that runs already, it wakes nobody, and whoever called
// it has to wait at a Barrier before anything reads the result.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace livery {

template <class F>
inline void in_team(int threads, const F& f) {
  if (omp_in_parallel()) {
    f();
  } else {
#pragma omp parallel num_threads(threads)
    f();
  }
}

// Lets the threads of a team go on once all have come. OpenMP's own sleeps at once where waiting is to be passive,
// and waking up costs more than most of what lies between two barriers of a decoding step.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    // A neighbour that wants the core gets it after some microseconds.
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      spins < kSpins ? relax() : std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 2000;

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// Memory that a team shares for a moment. Every thread asks for the same; nobody uses it after the caller's barrier.
struct SharedRoom {
  Barrier barrier;
  std::vector<float> memory;

  float* of(size_t floats) {
    const int threads = omp_get_num_threads();
    barrier.wait(threads);  // somebody may still be using it
    if (omp_get_thread_num() == 0 && memory.size() < floats) memory.resize(floats);
    barrier.wait(threads);
    return memory.data();
  }
};

}  // namespace livery
