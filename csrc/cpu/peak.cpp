// The machine's peak speed, which benchmarks compare with: fused multiply-adds on registers alone.
#include <chrono>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "simd.h"
#include "team.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

// Floating-point operations a second on one thread. 12 chains: enough for two units of latency 5.
double measure() {
  using Value = Simd<float>::Value;
  constexpr int kChains = 12, kSteps = 100'000;
  const Value scale = 0.999f - Value{}, shift = 0.001f - Value{};
  Value chain[kChains] = {};
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  auto now = start;
  while (now - start < std::chrono::milliseconds(50)) {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * scale + shift;
    }
    // Without a use of the sums the compiler would remove the loop.
    for (int i = 0; i < kChains; ++i) asm volatile("" : : "m"(chain[i]) : "memory");
    const auto before = now;
    now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - before).count();
    const double flops = 2.0 * kSteps * kChains * Simd<float>::kLanes / seconds;
    best = flops > best ? flops : best;
  }
  return best;
}

}  // namespace

double fma_flops(int num_threads) {
  std::vector<Progress> progress(num_threads);
  std::vector<double> flops(num_threads);
  run_team(progress.data(), num_threads, num_threads, [&](Team team) {
    team.barrier();
    flops[team.thread()] = measure();
  });
  return std::accumulate(flops.begin(), flops.end(), 0.0);
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
