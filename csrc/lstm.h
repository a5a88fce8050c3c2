// The contract between Python and the kernels: one plain struct per direction of the data.
//
// Sizes      T time steps, B batch, G groups (LSTMs of one shape side by side), H hidden units,
//            I input size, or 0 where the input is projected already.
// Gates      i, f, g, o, in this order, wherever "4H" or "5H" is written; peepholes i, f, o.
// Lifetimes  every pointer belongs to the caller and must stay valid until the call returns.
//            No kernel allocates, keeps or frees memory; scratch comes in as `workspace`.
// Layout     row-major and contiguous unless strides stand beside the pointer. Strides count
//            elements, not bytes, and may be 0 (a broadcast) or, for groups, negative.
// Type       void* is an array of `dtype`. Gradients of weights are sums over all of T and B:
//            they are float where dtype is bfloat16, else of dtype.
//
// The equations are those of fastlstm/backends/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm {

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2 };

// Sizes that every call needs, and the order in which each group and each row is read.
struct LstmShape {
  DType dtype;
  int64_t T, B, G, H, I;
  const uint8_t* reverse;  // (G) nonzero: this group reads time backwards
  const int64_t* lengths;  // (B) in 0..T, or null: all T. Outputs past a row's length are zero
};

// One parameter of all groups: G arrays of one shape, `stride` elements apart; null if there is
// none.
struct LstmWeight {
  const void* data;
  int64_t stride;
};

struct LstmForward {
  LstmShape shape;

  const void* input;        // x (T, B, G, I), or, if I is 0, igates (T, B, G, 4H) with biases in
  int64_t input_stride[3];  // of T, B, G; the last dimension is contiguous
  LstmWeight weight_ih;     // (4H, I); none if I is 0
  LstmWeight bias_ih;       // (4H) or none
  LstmWeight bias_hh;       // (4H) or none
  LstmWeight weight_hh;     // (4H, H)
  LstmWeight weight_ch;     // (3H) peepholes, or none
  const void* hx;           // (G, B, H)
  const void* cx;           // (G, B, H)

  void* y;          // (T, B, G, H)
  void* hy;         // (G, B, H)
  void* cy;         // (G, B, H)
  void* reserve;    // (T, B, G, 5H) activated gates i, f, g, o and the cell state c, or null
                    // when no backward will follow. Rows past a length are left unwritten.
  void* packed;     // forward_packed(shape) bytes, 64-byte aligned: W_ih and W_hh in the kernel's
                    // order, kept by the caller for later calls; or null: in workspace, if at all
  bool is_packed;   // an earlier call with these weights has filled `packed`
  void* workspace;  // forward_workspace(shape, ...) bytes, 64-byte aligned, never zeroed
};

struct LstmBackward {
  LstmShape shape;

  const void* dy;           // (T, B, G, H), or null: zero
  int64_t dy_stride[3];     // of T, B, G; the last dimension is contiguous
  const void* dhy;          // (G, B, H), or null: zero
  const void* dcy;          // (G, B, H), or null: zero
  const void* reserve;      // (T, B, G, 5H) as forward wrote it
  const void* y;            // (T, B, G, H) as forward wrote it
  const void* input;        // x as forward read it; null if I is 0
  int64_t input_stride[3];  // of T, B, G
  LstmWeight weight_ih, weight_hh, weight_ch;
  const void* hx;  // (G, B, H)
  const void* cx;  // (G, B, H)

  // Each of these may be null: not asked for.
  void* dinput;              // dx (T, B, G, I), or, if I is 0, digates (T, B, G, 4H), contiguous
  int64_t dinput_stride[3];  // of T, B, G; 0 for G: the groups share x, and dx is their sum
  void* dweight_ih;          // (G, 4H, I)
  void* dbias;               // (G, 4H), of either bias; null if I is 0
  void* dweight_hh;          // (G, 4H, H)
  void* dweight_ch;          // (G, 3H)

  void* dhx;        // (G, B, H)
  void* dcx;        // (G, B, H)
  void* workspace;  // backward_workspace(shape, ...) bytes, 64-byte aligned, never zeroed
};

}  // namespace fastlstm
