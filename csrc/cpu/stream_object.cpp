// The stepping object of csrc/stream.h: checks arguments, owns the memory, keeps the state.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "../stream.h"
#include "kernels.h"
#include "schedule.h"
#include "stream_packing.h"
#include "thread_choice.h"

namespace fastlstm::cpu {
namespace {

thread_local char last_error[256] = "";

int fail(int code, const char* message) {
  std::strncpy(last_error, message, sizeof(last_error) - 1);
  return code;
}

// Runs `body` and turns what it throws into a code.
template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return FASTLSTM_OK;
  } catch (const std::invalid_argument& error) {
    return fail(FASTLSTM_INVALID, error.what());
  } catch (const std::bad_alloc&) {
    return fail(FASTLSTM_FAILED, "the stream: not enough memory");
  } catch (const std::exception& error) {
    return fail(FASTLSTM_FAILED, error.what());
  } catch (...) {
    return fail(FASTLSTM_FAILED, "the stream: an unknown error");
  }
}

void check(const std::string& name, int64_t value, int64_t least, int64_t most) {
  if (least <= value && value <= most) return;
  throw std::invalid_argument(name + ": expected " + std::to_string(least) + " to " +
                              std::to_string(most) + ", got " + std::to_string(value));
}

void check_address(const std::string& name, const void* address) {
  if (!address) throw std::invalid_argument(name + ": expected an address, got NULL");
}

// Zeroed memory, on large pages from 1 MiB on: reading weights from memory is then 1.6 times as
// fast.
class Memory {
 public:
  explicit Memory(size_t bytes) {
    constexpr size_t kLargePage = 2 << 20;
    const bool is_large = bytes >= kLargePage / 2;
    const size_t unit = is_large ? kLargePage : 64, size = (bytes + unit) / unit * unit;
    const double installed = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
    if (double(size) > installed) throw std::bad_alloc();
    data_ = std::aligned_alloc(unit, size);
    if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (is_large) madvise(data_, size, MADV_HUGEPAGE);
#endif
    std::memset(data_, 0, size);
  }
  Memory(const Memory&) = delete;
  ~Memory() { std::free(data_); }
  void* data() const { return data_; }

 private:
  void* data_;
};

// About how long a step of B rows takes on one thread: reading the weights, or the arithmetic.
double step_microseconds(WeightType type, int64_t weight_bytes, int64_t B) {
  const auto bytes = static_cast<double>(weight_bytes);
  const double numbers = bytes * static_cast<double>(numbers_per_word(type)) / 4;
  const double of_a_number = type == WeightType::int8 ? 10e-6 : 18e-6;
  const double reading = bytes * 10e-6, arithmetic = numbers * static_cast<double>(B) * of_a_number;
  return reading > arithmetic ? reading : arithmetic;
}

// In a shorter step, waking a second thread and waiting for it costs more than it saves. With one
// row this is a step that reads 512 KiB of weights.
constexpr double kSharedStep = 512 * 1024 * 10e-6;

// Checks the sizes. Within these limits no product of sizes overflows.
const fastlstm_stream_config& checked(const fastlstm_stream_config& config) {
  constexpr int64_t kMost = 1 << 22;
  check("batch_size", config.batch_size, 1, kMost);
  check("input_size", config.input_size, 0, kMost);
  check("hidden_size", config.hidden_size, 1, kMost);
  check("proj_size", config.proj_size, 0, config.hidden_size - 1);
  check("num_layers", config.num_layers, 1, 1 << 10);
  check("weight_type", config.weight_type, FASTLSTM_FLOAT32, FASTLSTM_INT8);
  check("num_threads", config.num_threads, 1, 1 << 12);
  return config;
}

void copy_rows(float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t rows,
               int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_stride, from + row * from_stride, columns * sizeof(float));
  }
}

class Stream {
 public:
  explicit Stream(const fastlstm_stream_config& config)
      : kernels_(kernels(checked(config).isa ? config.isa : "auto")),
        lanes_(kernels_.stream_lanes()) {
    plan_.type = static_cast<WeightType>(config.weight_type);
    plan_.has_projection = config.proj_size > 0;
    most_rows_ = config.batch_size, plan_.I = config.input_size, plan_.H = config.hidden_size;
    plan_.P = plan_.has_projection ? config.proj_size : plan_.H;
    plan_.L = config.num_layers;
    plan_.most_threads = config.num_threads;
    plan_.has_vnni = kernels_.stream_has_vnni();
    check_layers(config.layers);

    layers_ = std::make_unique<StreamLayer[]>(plan_.L);
    plan_.layers = layers_.get();
    Workspace weights(nullptr), rest(nullptr);
    plan_.num_threads = 1;
    lay_out(weights, rest);
    weight_bytes_ = weights.bytes();
    num_threads_ = static_cast<int>(lesser(config.num_threads, panels()));
    plan_.num_threads = threads_for(most_rows_);
    weights = rest = Workspace(nullptr);
    lay_out(weights, rest);
    weight_memory_ = std::make_unique<Memory>(weights.bytes());
    memory_ = std::make_unique<Memory>(rest.bytes());
    weights = Workspace(weight_memory_->data());
    rest = Workspace(memory_->data());
    lay_out(weights, rest);
    pack(config.layers, config.h_0, config.c_0);
    resize(config.batch_size);
  }

  // The flag of a stream in use.
  std::atomic<bool> busy{false};

  const StreamPlan& plan() const { return plan_; }
  int most_threads() const { return threads_.most(); }

  // Uses so many of the rows there is memory for, from the initial state on.
  void resize(int64_t batch_size) {
    check("batch_size", batch_size, 1, most_rows_);
    plan_.B = batch_size;
    plan_.max_steps = greater(1, kBlockRows / batch_size);
    threads_.set_most(threads_for(batch_size));
    reset(nullptr);
  }

  void run(StreamCall call) {
    check("T", call.T, 0, INT64_MAX);
    if (call.T == 0) return;
    check_address("y", call.y);
    if (plan_.I) check_address("x", call.x);
    plan_.num_threads = threads_.next();
    const double step = step_microseconds(plan_.type, weight_bytes_, plan_.B);
    threads_.watch(step * static_cast<double>(call.T), [&] { kernels_.stream_run(plan_, call); });
  }

  void get_state(float* h, float* c) const {
    check_address("h", h), check_address("c", c);
    const auto [B, H, P] = sizes();
    for (int64_t l = 0; l < plan_.L; ++l) {
      copy_rows(h + l * B * P, P, h_of(l), padded(P), B, P);
      copy_rows(c + l * B * H, H, layers_[l].c, padded(H), B, H);
    }
  }

  void set_state(const float* h, const float* c) {
    check_address("h", h), check_address("c", c);
    const auto [B, H, P] = sizes();
    for (int64_t l = 0; l < plan_.L; ++l) {
      copy_rows(h_of(l), padded(P), h + l * B * P, P, B, P);
      copy_rows(layers_[l].c, padded(H), c + l * B * H, H, B, H);
    }
  }

  void reset(const uint8_t* rows) {
    const auto [B, H, P] = sizes();
    for (int64_t l = 0; l < plan_.L; ++l) {
      for (int64_t b = 0; b < B; ++b) {
        if (rows && !rows[b]) continue;
        copy_rows(h_of(l) + b * padded(P), 0, layers_[l].h_0, 0, 1, P);
        copy_rows(layers_[l].c + b * padded(H), 0, layers_[l].c_0, 0, 1, H);
      }
    }
  }

  void check_layers(const fastlstm_layer* layers) const {
    check_address("layers", layers);
    for (int64_t l = 0; l < plan_.L; ++l) {
      const std::string name = "layers[" + std::to_string(l) + "].";
      if (inputs(l)) check_address(name + "weight_ih", layers[l].weight_ih);
      check_address(name + "weight_hh", layers[l].weight_hh);
      if (plan_.has_projection) check_address(name + "weight_hr", layers[l].weight_hr);
      if (!plan_.has_projection && layers[l].weight_hr) {
        throw std::invalid_argument(name + "weight_hr: expected NULL as proj_size is 0");
      }
    }
  }

  // Packs the weights, which were checked.
  void pack(const fastlstm_layer* layers, const float* h_0, const float* c_0) {
    const auto [B, H, P] = sizes();
    const WeightType type = plan_.type;
    for (int64_t l = 0; l < plan_.L; ++l) {
      const fastlstm_layer& from = layers[l];
      StreamLayer& to = layers_[l];
      cpu::pack(type, {from.weight_ih, 4 * H, inputs(l), true}, lanes_, to.weight_ih);
      cpu::pack(type, {from.weight_hh, 4 * H, P, true}, lanes_, to.weight_hh);
      if (plan_.has_projection)
        cpu::pack(type, {from.weight_hr, P, H, false}, lanes_, to.weight_hr);
      for (int64_t unit = 0; unit < H; ++unit) {
        const int64_t panel = unit / lanes_, lane = unit % lanes_;
        for (int64_t gate = 0; gate < 4; ++gate) {
          const int64_t row = gate * H + unit;
          to.bias[(panel * 4 + gate) * lanes_ + lane] =
              (from.bias_ih ? from.bias_ih[row] : 0) + (from.bias_hh ? from.bias_hh[row] : 0);
        }
        for (int64_t gate = 0; gate < 3; ++gate) {
          to.peepholes[(panel * 3 + gate) * lanes_ + lane] =
              from.weight_ch ? from.weight_ch[gate * H + unit] : 0;
        }
      }
      to.has_peepholes = from.weight_ch;
      for (int64_t i = 0; i < P; ++i) to.h_0[i] = h_0 ? h_0[l * P + i] : 0;
      for (int64_t i = 0; i < H; ++i) to.c_0[i] = c_0 ? c_0[l * H + i] : 0;
    }
  }

 private:
  static constexpr int64_t kBlockRows = 24;  // a multiple of the rows that share a loaded weight

  struct Sizes {
    int64_t B, H, P;
  };
  Sizes sizes() const { return {plan_.B, plan_.H, plan_.P}; }
  int64_t inputs(int64_t l) const { return l ? plan_.P : plan_.I; }
  int threads_for(int64_t B) const {
    return step_microseconds(plan_.type, weight_bytes_, B) < kSharedStep ? 1 : num_threads_;
  }
  int64_t panels() const { return ceil_div(plan_.H, lanes_); }
  // h (B, padded(P)) of a layer now.
  float* h_of(int64_t l) const { return layers_[l].h + plan_.slot * plan_.B * padded(plan_.P); }

  void lay_out(StreamMatrix& matrix, int64_t panels, int64_t depth, Workspace& weights,
               Workspace& rest) const {
    matrix.depth = depth;
    matrix.words = weights.take<uint32_t>(panels * matrix.words_of_depth(plan_.type) * 4 * lanes_);
    const int64_t rows = plan_.type == WeightType::int8 ? panels * 4 * lanes_ : 0;
    matrix.scale = rest.take<float>(rows);
    matrix.offset = rest.take<float>(rows);
  }

  void lay_out(Workspace& weights, Workspace& rest) {
    const int64_t H = plan_.H, P = plan_.P, B = most_rows_;
    const int64_t units = panels() * lanes_, rows = greater(kBlockRows, B);  // of a block
    for (int64_t l = 0; l < plan_.L; ++l) {
      StreamLayer& layer = layers_[l];
      lay_out(layer.weight_ih, panels(), inputs(l), weights, rest);
      lay_out(layer.weight_hh, panels(), P, weights, rest);
      if (plan_.has_projection) {
        lay_out(layer.weight_hr, ceil_div(P, 4 * lanes_), H, weights, rest);
      }
      layer.bias = rest.take<float>(4 * units);
      layer.peepholes = rest.take<float>(3 * units);
      layer.h = rest.take<float>((rows + B) * padded(P));
      layer.c = rest.take<float>(B * padded(H));
      layer.h_0 = rest.take<float>(P);
      layer.c_0 = rest.take<float>(H);
    }
    plan_.gate_sums = rest.take<float>(rows * 4 * units);
    plan_.unprojected = rest.take<float>(plan_.has_projection ? B * padded(H) : 0);
    plan_.scratch_bytes = stream_scratch(rows, plan_.I, greater(plan_.I, H));
    plan_.scratch = rest.take<char>(plan_.scratch_bytes * plan_.num_threads);
    plan_.progress = rest.take<Progress>(plan_.num_threads);
  }

  const Kernels& kernels_;
  const int64_t lanes_;
  StreamPlan plan_{};
  int64_t most_rows_, weight_bytes_;
  int num_threads_;
  ThreadChoice threads_;
  std::unique_ptr<StreamLayer[]> layers_;
  std::unique_ptr<Memory> weight_memory_, memory_;
};

}  // namespace
}  // namespace fastlstm::cpu

using namespace fastlstm::cpu;

struct fastlstm_stream : Stream {
  using Stream::Stream;
};

namespace {

// Runs `body` unless another call is using the stream.
template <class Body>
int with(fastlstm_stream* stream, const Body& body) {
  if (!stream) return fail(FASTLSTM_INVALID, "stream: expected an address, got NULL");
  if (stream->busy.exchange(true, std::memory_order_acquire)) {
    return fail(FASTLSTM_BUSY, "the stream is in use by another thread");
  }
  const int code = guarded(body);
  stream->busy.store(false, std::memory_order_release);
  return code;
}

}  // namespace

fastlstm_stream* fastlstm_stream_create(const fastlstm_stream_config* config) {
  fastlstm_stream* stream = nullptr;
  guarded([&] {
    check_address("config", config);
    stream = new fastlstm_stream(*config);
  });
  return stream;
}

void fastlstm_stream_destroy(fastlstm_stream* stream) { delete stream; }

int fastlstm_stream_step(fastlstm_stream* stream, const float* x, float* y) {
  return fastlstm_stream_run(stream, 1, x, nullptr, y, nullptr);
}

int fastlstm_stream_run(fastlstm_stream* stream, int64_t T, const float* x,
                        const int64_t x_stride[3], float* y, const int64_t y_stride[2]) {
  return with(stream, [&] {
    const int64_t B = stream->plan().B, I = stream->plan().I, P = stream->plan().P;
    StreamCall call{T, x, {B * I, I, 1}, y, {B * P, P}};
    if (x_stride) std::memcpy(call.x_stride, x_stride, sizeof(call.x_stride));
    if (y_stride) std::memcpy(call.y_stride, y_stride, sizeof(call.y_stride));
    stream->run(call);
  });
}

int fastlstm_stream_resize(fastlstm_stream* stream, int64_t batch_size) {
  return with(stream, [&] { stream->resize(batch_size); });
}

int fastlstm_stream_get_state(fastlstm_stream* stream, float* h, float* c) {
  return with(stream, [&] { stream->get_state(h, c); });
}

int fastlstm_stream_set_state(fastlstm_stream* stream, const float* h, const float* c) {
  return with(stream, [&] { stream->set_state(h, c); });
}

int fastlstm_stream_reset(fastlstm_stream* stream, const uint8_t* rows) {
  return with(stream, [&] { stream->reset(rows); });
}

int fastlstm_stream_set_weights(fastlstm_stream* stream, const fastlstm_layer* layers,
                                const float* h_0, const float* c_0) {
  return with(stream, [&] {
    stream->check_layers(layers);
    stream->pack(layers, h_0, c_0);
  });
}

int fastlstm_stream_num_threads(const fastlstm_stream* stream) {
  return stream ? stream->most_threads() : 0;
}

const char* fastlstm_last_error(void) { return last_error; }
