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
//            they are float where dtype is bfloat16, else of dtype; and so are `states`.
// Memory     backward needs what forward keeps: the reserve of every step, or, if checkpoint_every
//            is k > 0, the state before every k-th step. It then runs those k steps once more,
//            and a few that it still needs, into its workspace; gradients are the same to the bit.
//
// The equations are those of fastlstm/backends/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm {

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// Sizes that every call needs, and the order in which each group and each row is read. Where a
// comment below says P, it is H if nothing is projected.
struct LstmShape {
  DType dtype;
  int64_t T, B, G, H, I;
  int64_t P;                 // numbers of a projected h, or 0: h has H and is not projected
  const uint8_t* reverse;    // (G) nonzero: this group reads time backwards
  const int64_t* lengths;    // (B) in 0..T, or null: all T. Outputs past a row's length are zero
  const int64_t* by_length;  // (B) the rows, longest first; null if lengths is
  const int64_t* first_row;  // (T) or null. Arrays (T, B, ...) are then (N, ...), and have only the
                             // rows that lengths allow: b at step t is row first_row[t] + b
  const uint8_t* reset;      // (T, B) or null. Nonzero: no state crosses from step t - 1 to t, nor,
                             // in a reversed group, from t to t - 1; none of hx and cx into t = 0
  int64_t checkpoint_every;  // k steps between the states that are kept, or 0: none are
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
  LstmWeight weight_hh;     // (4H, P)
  LstmWeight weight_ch;     // (3H) peepholes, or none
  LstmWeight weight_hr;     // (P, H), or none
  const void* hx;           // (G, B, P)
  const void* cx;           // (G, B, H)

  void* y;          // (T, B, G, P), or null: not asked for, nor needed by backward
  void* hy;         // (G, B, P)
  void* cy;         // (G, B, H)
  void* cells;      // (T, B, G, H) the cell state of every step, or null
  void* reserve;    // (T, B, G, 5H) activated gates i, f, g, o and the cell state c, or null
                    // when no backward will follow. Rows past a length are left unwritten.
  void* states;     // (ceil(T / k), G, B, P + H) h and c as steps 0, k, 2k ... of the group's order
                    // find them, before any reset; in the place of reserve, or null
  void* packed;     // forward_packed(shape) bytes, 64-byte aligned: W_ih and W_hh in the kernel's
                    // order, kept by the caller for later calls; or null: in workspace, if at all
  bool is_packed;   // an earlier call with these weights has filled `packed`
  void* workspace;  // forward_workspace(shape, ...) bytes, 64-byte aligned, never zeroed
};

struct LstmBackward {
  LstmShape shape;

  const void* dy;           // (T, B, G, P), or null: zero
  int64_t dy_stride[3];     // of T, B, G; the last dimension is contiguous
  const void* dhy;          // (G, B, P), or null: zero
  const void* dcy;          // (G, B, H), or null: zero
  const void* dcells;       // (T, B, G, H), or null: zero
  const void* reserve;      // (T, B, G, 5H) as forward wrote it, or null if k > 0
  const void* states;       // (ceil(T / k), G, B, P + H) as forward wrote it, or null if k is 0
  const void* y;            // (T, B, G, P) as forward wrote it; or null, if forward had none
  const void* input;        // as forward read it; null if I and k are 0
  int64_t input_stride[3];  // of T, B, G
  LstmWeight weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr;  // biases: if k > 0
  const void* hx;                                                           // (G, B, P)
  const void* cx;                                                           // (G, B, H)

  // Each of these may be null: not asked for.
  void* dinput;              // dx (T, B, G, I), or, if I is 0, digates (T, B, G, 4H), contiguous
  int64_t dinput_stride[3];  // of T, B, G; 0 for G: the groups share x, and dx is their sum
  void* dweight_ih;          // (G, 4H, I)
  void* dbias;               // (G, 4H), of either bias; null if I is 0
  void* dweight_hh;          // (G, 4H, P)
  void* dweight_ch;          // (G, 3H)
  void* dweight_hr;          // (G, P, H)

  void* dhx;        // (G, B, P)
  void* dcx;        // (G, B, H)
  void* workspace;  // backward_workspace(shape, ...) bytes, 64-byte aligned, never zeroed
};

}  // namespace fastlstm
