// The kernels of each instruction set, and the choice among them.
//
// They are compiled once per instruction set, into a namespace of its own:
// fastlstm::cpu::amx, ::avx512bf16, ::avx512, ::avx2, ::portable.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "../layer_norm.h"
#include "../lstm.h"
#include "bernoulli_loss.h"
#include "masks.h"
#include "stream.h"

namespace fastlstm::cpu {

#define FASTLSTM_DECLARE_KERNELS(isa)                                                           \
  namespace isa {                                                                               \
  bool forward_streams(const LstmShape&);                                                       \
  size_t forward_prepacked(const LstmShape&);                                                   \
  size_t forward_workspace(const LstmShape&, int num_threads);                                  \
  void forward(const LstmForward&, int num_threads);                                            \
  size_t backward_workspace(const LstmShape&, int num_threads);                                 \
  void backward(const LstmBackward&, int num_threads);                                          \
  size_t layer_norm_forward_workspace(const LstmShape&, int num_threads);                       \
  void layer_norm_forward(const LayerNormForward&, int num_threads);                            \
  size_t layer_norm_backward_workspace(const LstmShape&, int num_threads);                      \
  void layer_norm_backward(const LayerNormBackward&, int num_threads);                          \
  uint64_t checksum(const LstmShape&, const LstmWeight& weight_ih, const LstmWeight& weight_hh, \
                    int num_threads);                                                           \
  void to_bfloat16(const float* from, void* to, int64_t count, int num_threads);                \
  BernoulliLossResult bernoulli_loss(const BernoulliLoss&, int num_threads);                    \
  void draw_mask(const Mask&, int num_threads);                                                 \
  void drop_weights(const WeightDropout&, int num_threads);                                     \
  void drop_again(const WeightDropout&, int num_threads);                                       \
  double fma_flops(int num_threads);                                                            \
  int stream_lanes();                                                                           \
  bool stream_has_vnni();                                                                       \
  void stream_run(StreamPlan&, const StreamCall&);                                              \
  }
FASTLSTM_DECLARE_KERNELS(amx)
FASTLSTM_DECLARE_KERNELS(avx512bf16)
FASTLSTM_DECLARE_KERNELS(avx512)
FASTLSTM_DECLARE_KERNELS(avx2)
FASTLSTM_DECLARE_KERNELS(portable)
#undef FASTLSTM_DECLARE_KERNELS

struct Kernels {
  const char* isa;
  // Whether forward reads weights as they lie, and packs none, unless it is given prepacked ones.
  bool (*forward_streams)(const LstmShape&);
  size_t (*forward_prepacked)(const LstmShape&);
  size_t (*forward_workspace)(const LstmShape&, int num_threads);
  void (*forward)(const LstmForward&, int num_threads);
  size_t (*backward_workspace)(const LstmShape&, int num_threads);
  void (*backward)(const LstmBackward&, int num_threads);
  size_t (*layer_norm_forward_workspace)(const LstmShape&, int num_threads);
  void (*layer_norm_forward)(const LayerNormForward&, int num_threads);
  size_t (*layer_norm_backward_workspace)(const LstmShape&, int num_threads);
  void (*layer_norm_backward)(const LayerNormBackward&, int num_threads);
  // A checksum of weight_ih (G, 4H, I) and weight_hh (G, 4H, P), equal for any number of threads.
  uint64_t (*checksum)(const LstmShape&, const LstmWeight& weight_ih, const LstmWeight& weight_hh,
                       int num_threads);
  void (*to_bfloat16)(const float* from, void* to, int64_t count, int num_threads);
  BernoulliLossResult (*bernoulli_loss)(const BernoulliLoss&, int num_threads);
  void (*draw_mask)(const Mask&, int num_threads);
  void (*drop_weights)(const WeightDropout&, int num_threads);  // and draws the mask
  void (*drop_again)(const WeightDropout&, int num_threads);    // by a mask that was drawn
  double (*fma_flops)(int num_threads);  // operations a second, of multiply-adds on registers
  // The stepping object: the numbers of a vector, whether VPDPBUSD multiplies bytes, and steps.
  int (*stream_lanes)();
  bool (*stream_has_vnni)();
  void (*stream_run)(StreamPlan&, const StreamCall&);
};

// The kernels of `isa`, or the best that this machine runs if it is "auto". Throws
// std::invalid_argument if this machine or this build lacks it.
const Kernels& kernels(std::string_view isa);

// The names that `kernels` accepts here, best first.
std::vector<std::string> isas();

// Whether this process was forked by one that had loaded the kernels.
extern bool is_forked;

#if defined(FASTLSTM_FORCE_PLAN)
// How calls are divided among threads, whatever the model expects: on all of them, and cut into
// about as many parts of rows as of panels with `cut`, or as the model expects to be best with
// `all_threads`. Benchmarks and tests set it.
enum class ForcedPlan { none, rows, panels, cut, all_threads };
extern ForcedPlan forced_plan;

// One thread's share of a call, run alone: barriers do not wait, and no task of another thread is
// taken. Its results are wrong, but its time is right. Calls are simulated while at_barrier is set.
struct Simulation {
  int thread = 0;          // which one
  int threads = 0;         // that the call runs on
  int row_parts = 1;       // of the last step
  bool has_tasks = false;  // since the last barrier
  // Called instead of a barrier with the number of threads, and whether they are a part of the
  // team: those that have the same rows, and wait for each other at every step.
  void (*at_barrier)(int threads, bool is_part) = nullptr;
};
extern Simulation simulation;
#endif

}  // namespace fastlstm::cpu
