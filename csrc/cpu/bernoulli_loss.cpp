// Computes the loss softplus(a) - t a of logits a and targets t, its gradient, and the check of the
// targets, in one pass over memory.
//
// With e = exp(-|a|), softplus(a) = max(a, 0) + log(1 + e) and sigmoid(a) = (a < 0 ? e : 1) / (1 +
// e): one exponential and one division a number. No logarithm is taken of each number: log(1 + e)
// is summed as the logarithm of a product. The product less 1, "odds" below, is what is kept,
// because its relative error stays small where all e are small: multiplying by 1 + e adds e (1 +
// odds) to it.
//
// Sums are formed in blocks whose borders depend on the count alone, and the sums of the blocks are
// added in order, so the result is the same for any number of threads.
#include "bernoulli_loss.h"

#include <cmath>

#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

// Vectors whose product and sum are formed in the precision of the logits, and how often these are
// then multiplied and added in float64. A factor is at most 2, and 2^1024 is infinite.
constexpr int64_t kVectors = 16, kTimes = 60;
// A block has at least so many numbers, which take 10 us, and there are at most so many blocks.
constexpr int64_t kBlock = 16384, kMaxBlocks = 1024;
constexpr int kMaxThreads = 64;  // more would wait for memory
constexpr int64_t kBlocksPerThread = 2;

template <class Logit, class Target>
class BlockLoss {
  using V = Simd<typename Format<Logit>::Value>;
  using Value = typename V::Value;
  using Number = typename Format<Logit>::Value;
  using Unsigned = typename V::Wrapping;
  static constexpr int kLanes = V::kLanes;

 public:
  static constexpr int64_t kWidth = kLanes * kVectors;

  explicit BlockLoss(double scale) : scale_(static_cast<Number>(scale) - Value{}) {}

  template <bool kGradient>
  double run(const Logit* logits, const Target* targets, Logit* gradient, int64_t count) {
    double sum = 0;
    int64_t i = 0;
    while (i < count) {
      double odds[kLanes] = {};
      for (int64_t time = 0; time < kTimes && i < count; ++time) {
        const int64_t vectors = lesser(kVectors, (count - i) / kLanes);
        Value linear = {}, part = {};
        for (int64_t v = 0; v < vectors; ++v, i += kLanes) {
          add<kGradient>(logits + i, targets + i, kGradient ? gradient + i : nullptr, linear, part);
        }
        if (vectors < kVectors && i < count) {
          add_rest<kGradient>(logits + i, targets + i, kGradient ? gradient + i : nullptr,
                              count - i, linear, part);
          i = count;
        }
        for (int lane = 0; lane < kLanes; ++lane) {
          sum += linear[lane];
          odds[lane] += part[lane] * (1 + odds[lane]);
        }
      }
      for (const double lane : odds) sum += std::log1p(lane);
    }
    return sum;
  }

  // As unsigned numbers, the bits of a negative number and of a NaN are above those of 1.
  bool targets_in_range() const {
    const Unsigned one = (Unsigned)(Number(1) - Value{});
    bool in_range = true;
    for (int lane = 0; lane < kLanes; ++lane) in_range &= highest_[lane] <= one[lane];
    return in_range;
  }

 private:
  template <bool kGradient>
  FASTLSTM_INLINE void add(const Logit* logits, const Target* targets, Logit* gradient,
                           Value& linear, Value& odds) {
    const Value a = V::load(logits, AllLanes{}), t = V::load(targets, AllLanes{});
    const Unsigned bits = (Unsigned)t;
    highest_ = bits > highest_ ? bits : highest_;
    const Value e = V::exp_minus_magnitude(a);
    // Fused, max(a, 0) - t a is rounded once: what remains of a large a is as exact as it can be.
    linear += (a > 0 ? a : Value{}) - t * a;
    odds += e * (1 + odds);
    if constexpr (kGradient) {
      const Value sigmoid = (a < 0 ? e : 1 - Value{}) / (1 + e);
      V::store(gradient, (sigmoid - t) * scale_, AllLanes{});
    }
  }

  // The last numbers, less than a vector. A logit of -9984 with target 0 has no loss.
  template <bool kGradient>
  void add_rest(const Logit* logits, const Target* targets, Logit* gradient, int64_t count,
                Value& linear, Value& odds) {
    Logit rest[kLanes], found[kLanes];
    Target rest_targets[kLanes] = {};
    V::store(rest, Number(-9984) - Value{}, AllLanes{});
    for (int64_t i = 0; i < count; ++i) rest[i] = logits[i], rest_targets[i] = targets[i];
    add<kGradient>(rest, rest_targets, found, linear, odds);
    if constexpr (kGradient) {
      for (int64_t i = 0; i < count; ++i) gradient[i] = found[i];
    }
  }

  const Value scale_;
  Unsigned highest_ = {};
};

template <class Logit, class Target>
BernoulliLossResult run(const BernoulliLoss& call, int num_threads) {
  using Block = BlockLoss<Logit, Target>;
  const auto* logits = static_cast<const Logit*>(call.logits);
  const auto* targets = static_cast<const Target*>(call.targets);
  auto* gradient = static_cast<Logit*>(call.gradient);
  const int64_t least = greater(kBlock, ceil_div(call.count, kMaxBlocks));
  const int64_t size = ceil_div(least, Block::kWidth) * Block::kWidth;
  const int64_t blocks = ceil_div(call.count, size);
  double sums[kMaxBlocks];
  int outside = 0;  // of the threads, those that met a target outside [0, 1]

  const int64_t worth = ceil_div(blocks, kBlocksPerThread);
  const int threads = static_cast<int>(lesser(kMaxThreads, lesser(num_threads, worth)));
  Progress progress[kMaxThreads];
  run_team(progress, threads, num_threads, [&](Team team) {
    const Range mine = share(blocks, team.thread(), team.size());
    Block block(call.scale);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t first = i * size, count = lesser(size, call.count - first);
      sums[i] =
          gradient
              ? block.template run<true>(logits + first, targets + first, gradient + first, count)
              : block.template run<false>(logits + first, targets + first, nullptr, count);
    }
    if (!block.targets_in_range()) __atomic_fetch_add(&outside, 1, __ATOMIC_RELAXED);
  });
  double loss = 0;
  for (int64_t i = 0; i < blocks; ++i) loss += sums[i];
  return {loss, outside == 0};
}

template <class Logit>
BernoulliLossResult run_of(const BernoulliLoss& call, int num_threads) {
  return call.targets_dtype == DType::bfloat16 ? run<Logit, BFloat16>(call, num_threads)
                                               : run<Logit, float>(call, num_threads);
}

}  // namespace

BernoulliLossResult bernoulli_loss(const BernoulliLoss& call, int num_threads) {
  switch (call.logits_dtype) {
    case DType::float64:
      return run<double, double>(call, num_threads);
    case DType::bfloat16:
      return run_of<BFloat16>(call, num_threads);
    default:
      return run_of<float>(call, num_threads);
  }
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
