// Vectors as wide as the instruction set this file is compiled for, and the two activations.
//
// It uses the compiler's vector extensions, so the same source serves AVX-512, AVX2 and other
// machines. Everything is in an anonymous namespace and forced inline. Otherwise the linker could
// merge a copy compiled with AVX-512 into code that runs on a machine without it.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../cell.h"

#if defined(__AVX2__) && !defined(FASTLSTM_VECTOR_BYTES)
#define FASTLSTM_AVX2
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && !defined(FASTLSTM_VECTOR_BYTES)
#define FASTLSTM_AVX512
#if defined(__AVX512DQ__)
#define FASTLSTM_SCALES  // has instructions that split off a number's fraction and scale by 2^n
#endif
#endif

namespace fastlstm::cpu {
namespace {

// A test may ask for wider vectors than the machine has: the compiler then splits them.
#if defined(FASTLSTM_VECTOR_BYTES)
constexpr int kVectorBytes = FASTLSTM_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// A bfloat16 in memory: the upper half of a float. All arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};

// A float that is split into pieces to be multiplied: see formats.h. In memory it is a plain float.
struct SplitFloat {
  float value;
};

// For a type in memory, `Stored`: the type of its values in registers, and the words in which the
// microkernel reads it, which are one number or two neighbours along the depth of a product.
template <class Stored>
struct Format {
  using Value = Stored;
  using Word = Stored;
  static constexpr int kPerWord = 1;
};
template <>
struct Format<BFloat16> {
  using Value = float;
  using Word = uint32_t;
  static constexpr int kPerWord = 2;
};
template <>
struct Format<SplitFloat> {
  using Value = float;
  struct Word {
    uint32_t pieces[3];
  };
  static constexpr int kPerWord = 2;
};

FASTLSTM_INLINE float number(float stored) { return stored; }
FASTLSTM_INLINE double number(double stored) { return stored; }
FASTLSTM_INLINE float number(SplitFloat stored) { return stored.value; }
FASTLSTM_INLINE float number(BFloat16 stored) {
  const uint32_t bits = uint32_t{stored.bits} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// How many of a vector's lanes hold hidden units: all, or only the first `count` where H ends.
struct AllLanes {};
struct SomeLanes {
  int32_t count;
  uint16_t mask() const { return static_cast<uint16_t>((1u << count) - 1); }
};

// e^r - 1 = r + r^2 P(r) on |r| <= ln(2)/2, P interpolated at Chebyshev nodes. The relative error
// of e^r - 1 is 2.5e-8 in float32 (degree 4) and 4.2e-17 in float64 (degree 9): below half an ulp.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  using Integer = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Integer kBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // x + kRound - kRound rounds x to an integer
  static constexpr float kLog2Hi = 0x1.62e4p-1f, kLog2Lo = 0x1.7f7d1cp-20f;  // n * kLog2Hi is exact
  static constexpr float kMin = -80.0f, kMax = 88.75f;  // kMax lies just above 128 ln(2)
  static constexpr float kP[] = {0.5f, 0.16666576f, 0.041666554f, 0.0083632927f, 0.0013926326f};
  // The same for the functions with scaling: e^r on |r| <= ln(2)/2, with a relative error of 4e-9,
  // and (2^r - 1) / r on |r| <= 1/2, with one of 1.7e-8.
  static constexpr float kExp[] = {1.0f,         1.0f,           0.49999994f,   0.166665211f,
                                   0.041668389f, 0.00836871658f, 0.00138145988f};
  static constexpr float kExp2[] = {0.693147182f,   0.240226492f,   0.0555036664f,
                                    0.00961824786f, 0.00133877667f, 0.000153983972f};
};

template <>
struct Exponential<double> {
  using Integer = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Integer kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2Hi = 0x1.62e42fefa3800p-1, kLog2Lo = 0x1.ef35793c76730p-45;
  static constexpr double kMin = -700.0, kMax = 709.8;  // kMax lies just above 1024 ln(2)
  static constexpr double kP[] = {0.50000000000000010417,   0.16666666666666667468,
                                  0.041666666666623476764,  0.0083333333333300117609,
                                  0.0013888888917538295848, 0.00019841269863303223296,
                                  2.4801520792572692843e-5, 2.7557268072890098263e-6,
                                  2.762032742826823816e-7,  2.5100569275813682631e-8};
};

template <class T>
struct Simd {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  using Integer = typename Exponential<T>::Integer;
  typedef T Value __attribute__((vector_size(kVectorBytes)));
  typedef Integer Bits __attribute__((vector_size(kVectorBytes)));
  // Unsigned bits, for arithmetic that may overflow, as it does on a NaN.
  typedef std::make_unsigned_t<Integer> Wrapping __attribute__((vector_size(kVectorBytes)));
  // The same vector, wherever in memory it begins.
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));

  static FASTLSTM_INLINE Value load(const T* from, AllLanes) {
    return *reinterpret_cast<const Unaligned*>(from);
  }
  static FASTLSTM_INLINE void store(T* to, Value value, AllLanes) {
    *reinterpret_cast<Unaligned*>(to) = value;
  }

  // Load and store only the first `count` lanes; the other lanes of a loaded vector are zero.
  // AVX-512 has instructions for this. Compilers turn the loop into sixteen scalar moves, which
  // took a third of a backward pass with H = 20.
  static FASTLSTM_INLINE Value load(const T* from, SomeLanes lanes) {
#if defined(FASTLSTM_AVX512)
    if constexpr (sizeof(T) == 4) {
      return (Value)_mm512_maskz_loadu_ps(lanes.mask(), from);
    } else {
      return (Value)_mm512_maskz_loadu_pd(lanes.mask(), from);
    }
#else
    alignas(kVectorBytes) T lane[kLanes];
    for (Integer i = 0; i < kLanes; ++i) lane[i] = i < lanes.count ? from[i] : 0;
    return *reinterpret_cast<const Unaligned*>(lane);
#endif
  }
  static FASTLSTM_INLINE void store(T* to, Value value, SomeLanes lanes) {
#if defined(FASTLSTM_AVX512)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(to, lanes.mask(), (__m512)value);
    } else {
      _mm512_mask_storeu_pd(to, lanes.mask(), (__m512d)value);
    }
#else
    alignas(kVectorBytes) T lane[kLanes];
    *reinterpret_cast<Unaligned*>(lane) = value;
    for (Integer i = 0; i < kLanes; ++i) {
      if (i < lanes.count) to[i] = lane[i];
    }
#endif
  }

  template <class Lanes>
  static FASTLSTM_INLINE Value load(const SplitFloat* from, Lanes lanes) {
    return load(&from->value, lanes);
  }
  template <class Lanes>
  static FASTLSTM_INLINE void store(SplitFloat* to, Value value, Lanes lanes) {
    store(&to->value, value, lanes);
  }

  // The same for bfloat16 in memory: exact when loaded, rounded to nearest even when stored.
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  static FASTLSTM_INLINE Bits widen(const BFloat16* from, AllLanes) {
#if defined(FASTLSTM_AVX512)
    // Of the conversion below the compiler makes two of half a vector.
    const auto* halves = reinterpret_cast<const __m256i*>(from);
    return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(halves));
#else
    return __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits);
#endif
  }
  static FASTLSTM_INLINE Bits widen(const BFloat16* from, SomeLanes lanes) {
#if defined(FASTLSTM_AVX512)
    return (Bits)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes.mask(), from));
#else
    alignas(kVectorBytes) Integer lane[kLanes];
    for (Integer i = 0; i < kLanes; ++i) lane[i] = i < lanes.count ? from[i].bits : 0;
    return *reinterpret_cast<const Bits*>(lane);
#endif
  }
  template <class Lanes>
  static FASTLSTM_INLINE Value load(const BFloat16* from, Lanes lanes) {
    return (Value)(widen(from, lanes) << 16);
  }
  static FASTLSTM_INLINE Bits round(Value value) {
    const Wrapping bits = (Wrapping)value, upper = bits >> 16;
    const Wrapping rounded = (bits + 0x7fff + (upper & 1)) >> 16;
    return (Bits)(value == value ? rounded : upper | 0x40);  // a NaN must not round to infinity
  }
#if defined(FASTLSTM_AVX512) && defined(__AVX512BF16__)
  // One instruction in the place of eight. It stores 0 for what is below 1e-38.
  static FASTLSTM_INLINE void store(BFloat16* to, Value value, AllLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value));
  }
  static FASTLSTM_INLINE void store(BFloat16* to, Value value, SomeLanes lanes) {
    _mm256_mask_storeu_epi16(to, lanes.mask(), (__m256i)_mm512_cvtneps_pbh((__m512)value));
  }
#else
  static FASTLSTM_INLINE void store(BFloat16* to, Value value, AllLanes) {
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(round(value), Halves);
  }
  static FASTLSTM_INLINE void store(BFloat16* to, Value value, SomeLanes lanes) {
#if defined(FASTLSTM_AVX512)
    _mm256_mask_storeu_epi16(to, lanes.mask(), _mm512_cvtepi32_epi16((__m512i)round(value)));
#else
    alignas(kVectorBytes) Integer lane[kLanes];
    *reinterpret_cast<Bits*>(lane) = round(value);
    for (Integer i = 0; i < kLanes; ++i) {
      if (i < lanes.count) to[i].bits = static_cast<uint16_t>(lane[i]);
    }
#endif
  }
#endif

  // NaN stays NaN: comparisons with it are false, and the instructions then return their second
  // operand, which is x.
  static FASTLSTM_INLINE Value clamp(Value x, Value low, Value high) {
    // The compiler would emit a comparison and a masked move for each: 15% of an activation.
#if defined(FASTLSTM_AVX512)
    if constexpr (sizeof(T) == 4) {
      return (Value)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
    } else {
      return (Value)_mm512_min_pd((__m512d)high, _mm512_max_pd((__m512d)low, (__m512d)x));
    }
#elif defined(FASTLSTM_AVX2)
    if constexpr (sizeof(T) == 4) {
      return (Value)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
    } else {
      return (Value)_mm256_min_pd((__m256d)high, _mm256_max_pd((__m256d)low, (__m256d)x));
    }
#else
    x = x < low ? low : x;
    return x > high ? high : x;
#endif
  }

  // i, f and o become their sigmoids, g and c their tanh.
  static FASTLSTM_INLINE void activate(Value& i, Value& f, Value& g) {
    if constexpr (kScales) {
      i = sigmoid(i), f = sigmoid(f), g = tanh(g);
    } else {
      Value x[] = {-i, -f, g + g};
      half_expm1(x);
      i = 1 / twice(x[0] + 1), f = 1 / twice(x[1] + 1), g = x[2] / (x[2] + 1);
    }
  }
  static FASTLSTM_INLINE void activate(Value& o, Value& c) {
    if constexpr (kScales) {
      o = sigmoid(o), c = tanh(c);
    } else {
      Value x[] = {-o, c + c};
      half_expm1(x);
      o = 1 / twice(x[0] + 1), c = x[1] / (x[1] + 1);
    }
  }

  static FASTLSTM_INLINE Value tanh(Value x) {
    const Value e = half_expm1_twice(x);
    return e / (e + 1);
  }

  // 1 / (1 + e^-x). Where e^-x overflows, it is 0.
  static FASTLSTM_INLINE Value sigmoid(Value x) { return 1 / one_plus_exp_minus(x); }

  // e^-|x|, with a small relative error for large |x| too; at least e^kMin or, with scaling, 0.
  static FASTLSTM_INLINE Value exp_minus_magnitude(Value x) {
    if constexpr (kScales) {
      return exp_minus((Value)((Bits)x & ~kSign));
    } else {
      using E = Exponential<T>;
      x = clamp((Value)((Bits)x | kSign), E::kMin - Value{}, Value{});
      const Value shifted = x * kLog2E + E::kRound, n = shifted - E::kRound;
      const Value r = (x - n * E::kLog2Hi) - n * E::kLog2Lo;
      const Value scale = (Value)(((Wrapping)shifted + E::kBias) << E::kMantissaBits);
      return (polynomial(E::kP, r) * (r * r) + r) * scale + scale;
    }
  }

 private:
  static constexpr T kLog2E = T(1.4426950408889634);
  static constexpr Integer kSign = std::numeric_limits<Integer>::min();

  template <int kCount>
  static FASTLSTM_INLINE Value polynomial(const T (&coefficients)[kCount], Value r) {
    Value sum = coefficients[kCount - 1] - Value{};
#pragma GCC unroll 16
    for (int k = kCount - 2; k >= 0; --k) sum = sum * r + coefficients[k];
    return sum;
  }

#if defined(FASTLSTM_SCALES)
  // In float32, the cell takes 18 ns a vector of units with these functions and 23.4 with the
  // general ones: a power of 2 is scaled without integers, and hardly an argument is clamped.
  static constexpr bool kScales = std::is_same_v<T, float>;
  static FASTLSTM_INLINE Value nearest(Value x) {
    return (Value)_mm512_roundscale_ps((__m512)x, 0);
  }
  // x - nearest(x); 0 if x is infinite.
  static FASTLSTM_INLINE Value fraction(Value x) { return (Value)_mm512_reduce_ps((__m512)x, 0); }
  // x, brought to [-1/2, 1/2]; of a NaN 1/2.
  static FASTLSTM_INLINE Value at_most_half(Value x) {
    return (Value)_mm512_range_ps((__m512)x, _mm512_set1_ps(0.5f), 2);  // the smaller magnitude
  }
  static FASTLSTM_INLINE Value at_most(Value x, T high) {  // NaN stays NaN
    return (Value)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
  }
  static FASTLSTM_INLINE Value scale(Value x, Value n) {
    return (Value)_mm512_scalef_ps((__m512)x, (__m512)n);
  }
#else
  static constexpr bool kScales = false;
  static Value nearest(Value), fraction(Value), at_most_half(Value), at_most(Value, T);
  static Value scale(Value, Value);
#endif

  // e^-x, with scaling. If x is infinite or NaN, so is n, which decides the result.
  static FASTLSTM_INLINE Value exp_minus(Value x) {
    const Value n = nearest(x * -kLog2E), r = at_most_half(-x - n * T(0.6931471805599453));
    return scale(polynomial(Exponential<T>::kExp, r), n);
  }

  static FASTLSTM_INLINE Value twice(Value x) { return x + x; }

  // (e^x - 1) / 2 in the place of each x, accurate for small x too, as tanh needs. Halving keeps
  // 2^(n-1) finite for every x for which e^x is finite. The chains of instructions are written side
  // by side, because a processor does not look far enough ahead to overlap one with the next.
  template <int kCount>
  static FASTLSTM_INLINE void half_expm1(Value (&x)[kCount]) {
    using E = Exponential<T>;
    const auto each = [](const auto& visit) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) visit(i);
    };
    Value shifted[kCount], n[kCount], r[kCount], p[kCount];
    each([&](int i) { x[i] = clamp(x[i], E::kMin - Value{}, E::kMax - Value{}); });
    each([&](int i) { shifted[i] = x[i] * kLog2E + E::kRound; });
    each([&](int i) { n[i] = shifted[i] - E::kRound; });
    each([&](int i) { r[i] = x[i] - n[i] * E::kLog2Hi; });
    each([&](int i) { r[i] = r[i] - n[i] * E::kLog2Lo; });
    constexpr int kLast = sizeof(E::kP) / sizeof(E::kP[0]) - 1;
    each([&](int i) { p[i] = E::kP[kLast] - Value{}; });
#pragma GCC unroll 16
    for (int k = kLast - 1; k >= 0; --k) each([&](int i) { p[i] = p[i] * r[i] + E::kP[k]; });
    each([&](int i) { p[i] = p[i] * (r[i] * r[i]) + r[i]; });
    // The low mantissa bits of `shifted` are the integer n: make them the exponent of 2^(n-1).
    each([&](int i) {
      const auto exponent = (Wrapping)shifted[i] + (E::kBias - 1);
      const Value scale = (Value)(exponent << E::kMantissaBits);
      x[i] = p[i] * scale + (scale - T(0.5));
    });
  }
  static FASTLSTM_INLINE Value half_expm1(Value x) {
    Value alone[] = {x};
    half_expm1(alone);
    return alone[0];
  }

  // 1 + e^-x.
  static FASTLSTM_INLINE Value one_plus_exp_minus(Value x) {
    if constexpr (kScales) {
      return exp_minus(x) + 1;
    } else {
      return twice(half_expm1(-x) + 1);
    }
  }

  // (e^2x - 1) / 2, or, with scaling, at most 2^30: tanh x is 1 then.
  static FASTLSTM_INLINE Value half_expm1_twice(Value x) {
    if constexpr (kScales) {
      const Value t = at_most(x * (2 * kLog2E), 30), r = fraction(t);
      const Value half = scale(T(0.5) - Value{}, t - r);
      return r * polynomial(Exponential<T>::kExp2, r) * half + (half - T(0.5));
    } else {
      return half_expm1(x + x);
    }
  }
};

}  // namespace
}  // namespace fastlstm::cpu
