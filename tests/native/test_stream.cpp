// Tests csrc/stream.h without Python, against loops over doubles: every instruction set, every
// type of weights, many sizes; steps, chunks, state, reset, errors and two threads at once.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/stream.h"

namespace {

using Floats = std::vector<float>;

int failures = 0, cases = 0;

void expect(bool holds, const std::string& where, const std::string& what) {
  if (holds) return;
  std::printf("%s: %s (%s)\n", where.c_str(), what.c_str(), fastlstm_last_error());
  ++failures;
}

struct Case {
  int64_t T = 7, B = 1, I = 4, H = 4, P = 0, L = 1;
  int type = FASTLSTM_FLOAT32, threads = 1;
  bool bias = true, peepholes = false;

  int64_t out() const { return P ? P : H; }
};

// The weights and the input of a case. Each array is a heap block of exactly its size, so that
// AddressSanitizer finds accesses beyond it.
struct Data {
  explicit Data(const Case& c) : case_(c) {
    const float bound = 1 / std::sqrt(static_cast<float>(c.H));
    for (int64_t l = 0; l < c.L; ++l) {
      const int64_t inputs = l ? c.out() : c.I;
      arrays.push_back(random(4 * c.H * inputs, bound));
      arrays.push_back(random(4 * c.H * c.out(), bound));
      arrays.push_back(random(c.bias ? 4 * c.H : 0, bound));
      arrays.push_back(random(c.bias ? 4 * c.H : 0, bound));
      arrays.push_back(random(c.peepholes ? 3 * c.H : 0, bound));
      arrays.push_back(random(c.P * c.H, bound));
    }
    for (int64_t l = 0; l < c.L; ++l) {
      const auto at = [&](int i) {
        const Floats& array = arrays[6 * l + i];
        return array.empty() ? nullptr : array.data();
      };
      layers.push_back({at(0), at(1), at(2), at(3), at(4), at(5)});
    }
    x = random(c.T * c.B * c.I, 1);
    h_0 = random(c.L * c.out(), 1), c_0 = random(c.L * c.H, 1);
  }

  Floats random(int64_t count, float bound) {
    Floats numbers(count);
    for (float& number : numbers)
      number = std::uniform_real_distribution<float>(-bound, bound)(gen);
    return numbers;
  }

  fastlstm_stream_config config(const char* isa) const {
    return {case_.B,       case_.I, case_.H,       case_.P,    case_.L,   case_.type,
            case_.threads, isa,     layers.data(), h_0.data(), c_0.data()};
  }

  // A matrix (rows, columns) of this type.
  Floats rounded(const Floats& weights, int64_t columns) const {
    Floats numbers = weights;
    for (size_t row = 0; columns && row < numbers.size(); row += columns) {
      float* first = numbers.data() + row;
      float largest = 0;
      for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, std::fabs(first[i]));
      const float scale = largest / 127;
      for (int64_t i = 0; i < columns; ++i) {
        if (case_.type == FASTLSTM_INT8) first[i] = std::nearbyint(first[i] / scale) * scale;
        if (case_.type == FASTLSTM_BFLOAT16) {
          uint32_t bits;
          std::memcpy(&bits, &first[i], 4);
          bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
          std::memcpy(&first[i], &bits, 4);
        }
      }
    }
    return numbers;
  }

  // y (T, B, P), computed with doubles from the rounded weights.
  std::vector<double> expected() const {
    const Case& c = case_;
    const int64_t H = c.H, P = c.out();
    std::vector<double> in(x.begin(), x.end()), out;
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    for (int64_t l = 0; l < c.L; ++l) {
      const int64_t I = l ? P : c.I;
      const Floats* plain = &arrays[6 * l];
      const Floats w[] = {rounded(plain[0], I), rounded(plain[1], P), plain[2], plain[3], plain[4],
                          rounded(plain[5], H)};
      out.assign(c.T * c.B * P, 0);
      for (int64_t b = 0; b < c.B; ++b) {
        std::vector<double> h(h_0.begin() + l * P, h_0.begin() + (l + 1) * P);
        std::vector<double> cell(c_0.begin() + l * H, c_0.begin() + (l + 1) * H), full(H);
        for (int64_t t = 0; t < c.T; ++t) {
          for (int64_t u = 0; u < H; ++u) {
            double gate[4];
            for (int64_t g = 0; g < 4; ++g) {
              const int64_t row = g * H + u;
              gate[g] = c.bias ? double(w[2][row]) + w[3][row] : 0;
              for (int64_t i = 0; i < I; ++i)
                gate[g] += w[0][row * I + i] * in[(t * c.B + b) * I + i];
              for (int64_t i = 0; i < P; ++i) gate[g] += w[1][row * P + i] * h[i];
            }
            const auto peephole = [&](int g) { return c.peepholes ? w[4][g * H + u] : 0.0; };
            const double i = sigmoid(gate[0] + peephole(0) * cell[u]);
            const double f = sigmoid(gate[1] + peephole(1) * cell[u]);
            cell[u] = f * cell[u] + i * std::tanh(gate[2]);
            full[u] = sigmoid(gate[3] + peephole(2) * cell[u]) * std::tanh(cell[u]);
          }
          h = full;
          if (c.P) {
            h.assign(P, 0);
            for (int64_t p = 0; p < P; ++p) {
              for (int64_t u = 0; u < H; ++u) h[p] += w[5][p * H + u] * full[u];
            }
          }
          std::copy(h.begin(), h.end(), out.begin() + (t * c.B + b) * P);
        }
      }
      in = out;
    }
    return out;
  }

  Case case_;
  std::mt19937 gen{1};
  std::vector<Floats> arrays;
  std::vector<fastlstm_layer> layers;
  Floats x, h_0, c_0;
};

double relative_error(const Floats& found, const std::vector<double>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

std::vector<double> errors[3];  // of each type

void run(const Case& c, const char* isa) {
  ++cases;
  const Data data(c);
  const std::string where = std::string(isa) + " type " + std::to_string(c.type) + " B " +
                            std::to_string(c.B) + " I " + std::to_string(c.I) + " H " +
                            std::to_string(c.H) + " P " + std::to_string(c.P) + " L " +
                            std::to_string(c.L) + " threads " + std::to_string(c.threads);
  const fastlstm_stream_config config = data.config(isa);
  fastlstm_stream* stream = fastlstm_stream_create(&config);
  expect(stream, where, "is not created");
  if (!stream) return;
  const int64_t in = c.B * c.I, out = c.B * c.out();
  Floats steps(c.T * out), chunks(c.T * out), strided(c.T * out);
  for (int64_t t = 0; t < c.T; ++t) {
    const int code = fastlstm_stream_step(stream, data.x.data() + t * in, steps.data() + t * out);
    expect(code == FASTLSTM_OK, where, "step");
  }
  const double error = relative_error(steps, data.expected());
  constexpr double kLimits[] = {3e-6, 2e-5, 2e-3};  // int8 has x and h in 16 bits
  expect(error <= kLimits[c.type], where, "error " + std::to_string(error));
  errors[c.type].push_back(error);

  Floats h(c.L * out), cell(c.L * c.B * c.H);
  expect(!fastlstm_stream_get_state(stream, h.data(), cell.data()), where, "get_state");
  expect(
      !std::memcmp(h.data() + (c.L - 1) * out, steps.data() + (c.T - 1) * out, out * sizeof(float)),
      where, "the last h differs from y");

  // Chunks of 1, 2, 3 ... steps give the same bits.
  expect(!fastlstm_stream_reset(stream, nullptr), where, "reset");
  for (int64_t t = 0, size = 1; t < c.T; t += size++) {
    const int64_t T = std::min(size, c.T - t);
    expect(!fastlstm_stream_run(stream, T, data.x.data() + t * in, nullptr, chunks.data() + t * out,
                                nullptr),
           where, "run");
  }
  expect(steps == chunks, where, "chunks differ from steps");

  // So do inputs with strides, after a reset of each row.
  Floats spread(data.x.size() * 2);
  for (size_t i = 0; i < data.x.size(); ++i) spread[2 * i] = data.x[i];
  std::vector<uint8_t> mask(c.B, 1);
  expect(!fastlstm_stream_reset(stream, mask.data()), where, "reset of rows");
  const int64_t stride[] = {2 * in, 2 * c.I, 2};
  expect(!fastlstm_stream_run(stream, c.T, spread.data(), stride, strided.data(), nullptr), where,
         "strides");
  expect(steps == strided, where, "strides differ");

  // y too may have strides, here backwards in time; and all rows start again after a resize.
  Floats backwards(c.T * out);
  const int64_t y_stride[] = {-out, c.out()};
  expect(!fastlstm_stream_resize(stream, 1), where, "resize");
  expect(!fastlstm_stream_step(stream, data.x.data(), backwards.data()), where, "step of a row");
  expect(std::equal(steps.begin(), steps.begin() + c.out(), backwards.begin()), where, "one row");
  expect(fastlstm_stream_resize(stream, c.B + 1) == FASTLSTM_INVALID, where, "more rows");
  expect(!fastlstm_stream_resize(stream, c.B), where, "resize");
  expect(!fastlstm_stream_run(stream, c.T, data.x.data(), nullptr,
                              backwards.data() + (c.T - 1) * out, y_stride),
         where, "strides of y");
  for (int64_t t = 0; t < c.T; ++t) {
    expect(std::equal(steps.begin() + t * out, steps.begin() + (t + 1) * out,
                      backwards.begin() + (c.T - 1 - t) * out),
           where, "strides of y differ");
  }
  expect(!fastlstm_stream_reset(stream, nullptr), where, "reset");
  Floats once(c.T * out);
  expect(!fastlstm_stream_run(stream, c.T, data.x.data(), nullptr, once.data(), nullptr), where,
         "run");
  expect(once == steps, where, "one chunk differs");

  // The state that was read goes on like the stream that it was read from.
  const Data other(c);
  Floats next(out), again(out);
  expect(!fastlstm_stream_step(stream, data.x.data(), next.data()), where, "step");
  expect(!fastlstm_stream_set_state(stream, h.data(), cell.data()), where, "set_state");
  expect(!fastlstm_stream_set_weights(stream, data.layers.data(), nullptr, nullptr), where,
         "set_weights");
  expect(!fastlstm_stream_step(stream, data.x.data(), again.data()), where, "step");
  expect(next == again, where, "the state is not that of before");
  fastlstm_stream_destroy(stream);
}

void run_sizes() {
  std::mt19937 random(2);
  const auto one_of = [&](auto... choices) {
    const int64_t list[] = {static_cast<int64_t>(choices)...};
    return list[random() % (sizeof(list) / sizeof(*list))];
  };
  for (const std::string& isa : fastlstm::cpu::isas()) {
    for (int type = 0; type < 3; ++type) {
      for (const int64_t H : {1, 5, 16, 33, 70, 130, 260}) {
        for (const int64_t I : {0, 1, 7, 40, 48, 300}) {
          Case c;
          c.type = type, c.H = H, c.I = I;
          c.T = one_of(1, 5, 30);
          c.B = one_of(1, 1, 2, 3, 5, 8, 25);
          c.P = H > 1 ? one_of(0, 0, 1, H - 1) : 0;
          c.L = one_of(1, 2, 3);
          c.threads = one_of(1, 2, 3);
          c.bias = one_of(0, 1), c.peepholes = one_of(0, 1);
          if (c.T * c.B * c.L * H * (H + I) > 2'000'000) c.T = 3;
          run(c, isa.c_str());
        }
      }
    }
  }
}

void run_errors() {
  const Data data{Case{}};
  const auto refused = [&](const char* what, auto change) {
    fastlstm_stream_config config = data.config(nullptr);
    change(config);
    expect(!fastlstm_stream_create(&config), what, "is created");
    expect(*fastlstm_last_error(), what, "no message");
  };
  refused("batch_size", [](auto& config) { config.batch_size = 0; });
  refused("batch_size", [](auto& config) { config.batch_size = INT64_MAX; });
  refused("batch_size",
          [](auto& config) { config.batch_size = 1 << 22, config.input_size = 1 << 22; });
  refused("input_size", [](auto& config) { config.input_size = -1; });
  refused("hidden_size", [](auto& config) { config.hidden_size = INT64_MIN; });
  refused("proj_size", [](auto& config) { config.proj_size = 4; });
  refused("weight_hr", [](auto& config) { config.proj_size = 2; });
  refused("num_layers", [](auto& config) { config.num_layers = 0; });
  refused("weight_type", [](auto& config) { config.weight_type = 3; });
  refused("num_threads", [](auto& config) { config.num_threads = 0; });
  refused("isa", [](auto& config) { config.isa = "z80"; });
  refused("layers", [](auto& config) { config.layers = nullptr; });
  expect(!fastlstm_stream_create(nullptr), "config", "is created");
  fastlstm_layer layer = data.layers[0];
  layer.weight_hh = nullptr;
  refused("weight_hh", [&](auto& config) { config.layers = &layer; });

  const fastlstm_stream_config config = data.config(nullptr);
  fastlstm_stream* stream = fastlstm_stream_create(&config);
  float y[4];
  expect(fastlstm_stream_step(nullptr, y, y) == FASTLSTM_INVALID, "stream", "NULL");
  expect(fastlstm_stream_step(stream, nullptr, y) == FASTLSTM_INVALID, "x", "NULL");
  expect(fastlstm_stream_step(stream, y, nullptr) == FASTLSTM_INVALID, "y", "NULL");
  expect(fastlstm_stream_run(stream, -1, y, nullptr, y, nullptr) == FASTLSTM_INVALID, "T", "-1");
  expect(fastlstm_stream_run(stream, 0, nullptr, nullptr, nullptr, nullptr) == FASTLSTM_OK, "T",
         "0");
  expect(fastlstm_stream_get_state(stream, nullptr, y) == FASTLSTM_INVALID, "h", "NULL");
  fastlstm_stream_destroy(stream);
  fastlstm_stream_destroy(nullptr);
}

// Two threads step one stream: every call is done or refused.
void run_at_once() {
  Case c;
  c.H = 300, c.I = 300, c.threads = 2;
  const Data data(c);
  const fastlstm_stream_config config = data.config(nullptr);
  fastlstm_stream* stream = fastlstm_stream_create(&config);
  std::atomic<int> done{0}, busy{0}, other{0};
  const auto steps = [&] {
    Floats y(c.H);
    for (int i = 0; i < 200; ++i) {
      const int code = fastlstm_stream_step(stream, data.x.data(), y.data());
      ++(code == FASTLSTM_OK ? done : code == FASTLSTM_BUSY ? busy : other);
    }
  };
  std::thread one(steps), two(steps);
  one.join(), two.join();
  expect(done > 0 && done + busy == 400, "two threads", std::to_string(done) + " calls done");
  fastlstm_stream_destroy(stream);
}

}  // namespace

int main() {
  run_sizes();
  run_errors();
  run_at_once();
  for (const auto& of_type : errors) {
    std::printf("largest error %.2g\n", *std::max_element(of_type.begin(), of_type.end()));
  }
  std::printf("%d cases, %d results wrong\n", cases, failures);
  return failures > 0;
}
