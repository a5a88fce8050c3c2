// The contract between Python and the kernels: one plain struct per direction of the data.
//
// Sizes      T time steps, B batch, G groups (LSTMs of one shape side by side), H hidden units.
// Gates      i, f, g, o, in this order, wherever "4H" or "5H" is written; peepholes i, f, o.
// Lifetimes  every pointer belongs to the caller and must stay valid until the call returns.
//            No kernel allocates, keeps or frees memory; scratch comes in as `workspace`.
// Layout     row-major and contiguous unless strides stand beside the pointer. Strides count
//            elements, not bytes, and may be 0 (a broadcast) or, for groups, negative.
// Type       void* is float* or double*, as `dtype` says.
//
// The equations are those of fastlstm/backends/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm {

enum class DType : int { float32 = 0, float64 = 1 };

// Sizes that every call needs, and the order in which each group and each row is read.
struct LstmShape {
  DType dtype;
  int64_t T, B, G, H;
  const uint8_t* reverse;  // (G) nonzero: this group reads time backwards
  const int64_t* lengths;  // (B) in 0..T, or null: all T. Outputs past a row's length are zero
};

struct LstmForward {
  LstmShape shape;

  const void* igates;        // (T, B, G, 4H) input projection, both biases included
  int64_t igates_stride[3];  // of T, B, G; the last dimension is contiguous
  const void* weight_hh;     // G x (4H, H)
  int64_t weight_hh_stride;  // from one group's matrix to the next
  const void* weight_ch;     // G x (3H) peepholes, or null: none
  int64_t weight_ch_stride;
  const void* hx;  // (G, B, H)
  const void* cx;  // (G, B, H)

  void* y;          // (T, B, G, H)
  void* hy;         // (G, B, H)
  void* cy;         // (G, B, H)
  void* reserve;    // (T, B, G, 5H) activated gates i, f, g, o and the cell state c, or null
                    // when no backward will follow. Rows past a length are left unwritten.
  void* workspace;  // forward_workspace(shape, ...) bytes, 64-byte aligned, never zeroed
};

struct LstmBackward {
  LstmShape shape;

  const void* dy;        // (T, B, G, H), or null: zero
  int64_t dy_stride[3];  // of T, B, G; the last dimension is contiguous
  const void* dhy;       // (G, B, H), or null: zero
  const void* dcy;       // (G, B, H), or null: zero
  const void* reserve;   // (T, B, G, 5H) as forward wrote it
  const void* weight_hh;
  int64_t weight_hh_stride;
  const void* weight_ch;
  int64_t weight_ch_stride;
  const void* cx;  // (G, B, H)

  void* digates;     // (T, B, G, 4H) gradient of igates; rows past a length become zero
  void* dweight_ch;  // (G, 3H), or null when there are no peepholes
  void* dhx;         // (G, B, H)
  void* dcx;         // (G, B, H)
  void* workspace;   // backward_workspace(shape, ...) bytes, 64-byte aligned, never zeroed
};

}  // namespace fastlstm
