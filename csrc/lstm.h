// The arguments of the kernels: one plain struct for the forward and one for the backward pass.
//
// Sizes      T time steps, B batch, G groups (LSTMs of one shape side by side), H hidden units,
//            I input size, or 0 where the input is projected already.
// Gates      i, f, g, o, in this order, wherever "4H" or "5H" is written; peepholes i, f, o.
// Lifetimes  every pointer belongs to the caller and must stay valid until the call returns.
//            No kernel allocates, keeps or frees memory; scratch comes in as `workspace`.
// Layout     row-major and contiguous unless strides stand beside the pointer. Strides count
//            elements, not bytes, and may be 0 (a broadcast) or, for groups, negative.
// Type       void* is an array of `dtype`. Gradients of weights are sums over all of T and B:
//            they are float where dtype is bfloat16, else of dtype; and so are `checkpoints`.
// Memory     backward reads what forward saved: the reserve of every step, or, if checkpoint_every
//            is k > 0, a checkpoint (h and c) before every k-th step. Then it recomputes k steps at
//            a time into its workspace. Gradients are the same to the bit.
//
// The equations are those of fastlstm/backends/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm {

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// Sizes that every call needs, and the order in which each group and each row is read. Where a
// comment below says P, it is H if h is not projected.
struct LstmShape {
  DType dtype;
  int64_t T, B, G, H, I;
  int64_t P;                 // size of the projected h, or 0: h has H numbers, without a projection
  int64_t checkpoint_every;  // k steps between checkpoints, or 0: there are none
  const bool* reverse;       // (G) true: this group reads time backwards
  const int64_t* lengths;    // (B) in 0..T, or null: all T. Outputs past a row's length are zero
  const int64_t* by_length;  // (B) the rows, longest first; null if lengths is
  const int64_t* first_row;  // (T) or null. Arrays (T, B, ...) are then (N, ...), and have only the
                             // rows that lengths allow: b at step t is row first_row[t] + b
  const uint8_t* reset;      // (T, B) or null. Nonzero: no state crosses from step t - 1 to t, nor,
                             // in a reversed group, from t to t - 1; at t = 0 hx and cx are dropped
};

// One parameter of all groups: G arrays of one shape, `stride` elements apart; null if there is
// none.
struct LstmWeight {
  const void* data;
  int64_t stride;
};

// What the cells of a call compute beyond the plain equations. Each pointer may be null: off. Masks
// are arrays of `dtype`; kernels for CPUs take them beside no projection and no checkpoints.
struct LstmCellOptions {
  const void* hidden_mask;   // (G, B, P) a factor of h' in W_hh h'
  const void* masked_hx;     // (G, B, P) hidden_mask * hx, which forward reads
  const void* keep_h;        // (T, B, G, P) the share of h' in h
  int64_t keep_h_stride[3];  // of T, B, G; the last dimension is contiguous
  const void* keep_c;        // (T, B, G, H) the share of c' in c
  int64_t keep_c_stride[3];
  double cell_clip;  // the largest magnitude of c; 0: there is no limit
};

// What forward and backward both read.
struct LstmCall {
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
  const LstmCellOptions* options;  // or null: the plain equations
  void* workspace;  // forward_workspace(shape, ...) or backward_workspace(shape, ...) bytes,
                    // 64-byte aligned, never zeroed
};

struct LstmForward : LstmCall {
  void* y;            // (T, B, G, P), or null: not asked for, nor needed by backward or options
  void* hy;           // (G, B, P)
  void* cy;           // (G, B, H)
  void* cells;        // (T, B, G, H) the cell state of every step, or null
  void* reserve;      // (T, B, G, 5H) activated gates i, f, g, o and the cell state c, or null
                      // when no backward will follow. Rows past a length are left unwritten
  void* checkpoints;  // (ceil(T / k), G, B, P + H) h and c before steps 0, k, 2k ... of the group's
                      // order, before any reset; in the place of reserve, or null
  void* prepacked;    // forward_prepacked(shape) bytes, 64-byte aligned: W_ih and W_hh in the
                      // kernel's layout, which the caller keeps for later calls; or null
  bool is_prepacked;  // an earlier call with these weights has filled `prepacked`
};

// Backward reads of LstmCall: input if I or k is not 0, and the biases if k is not 0.
struct LstmBackward : LstmCall {
  const void* dy;           // (T, B, G, P), or null: zero
  int64_t dy_stride[3];     // of T, B, G; the last dimension is contiguous
  const void* dhy;          // (G, B, P), or null: zero
  const void* dcy;          // (G, B, H), or null: zero
  const void* dcells;       // (T, B, G, H), or null: zero
  const void* y;            // (T, B, G, P) as forward wrote it; or null, if forward had none
  const void* reserve;      // (T, B, G, 5H) as forward wrote it, or null if k > 0
  const void* checkpoints;  // (ceil(T / k), G, B, P + H) as forward wrote it, or null if k is 0

  // Each of these may be null: not asked for.
  void* dinput;              // dx (T, B, G, I), or, if I is 0, digates (T, B, G, 4H), contiguous
  int64_t dinput_stride[3];  // of T, B, G; 0 for G: the groups share x, and dx is their sum
  void* dweight_ih;          // (G, 4H, I)
  void* dbias;               // (G, 4H), of either bias; null if I is 0
  void* dweight_hh;          // (G, 4H, P)
  void* dweight_ch;          // (G, 3H)
  void* dweight_hr;          // (G, P, H)

  void* dhx;  // (G, B, P)
  void* dcx;  // (G, B, H)
};

// Calls visit(name, field) for every field of a struct but the workspace. Python passes the fields
// by these names.
template <class Visit>
void for_each_field(LstmShape& shape, Visit&& visit) {
  visit("dtype", shape.dtype);
  visit("T", shape.T);
  visit("B", shape.B);
  visit("G", shape.G);
  visit("H", shape.H);
  visit("I", shape.I);
  visit("P", shape.P);
  visit("checkpoint_every", shape.checkpoint_every);
  visit("reverse", shape.reverse);
  visit("lengths", shape.lengths);
  visit("by_length", shape.by_length);
  visit("first_row", shape.first_row);
  visit("reset", shape.reset);
}

template <class Visit>
void for_each_field(LstmCall& call, Visit&& visit) {
  for_each_field(call.shape, visit);
  visit("input", call.input);
  visit("input_stride", call.input_stride);
  visit("weight_ih", call.weight_ih);
  visit("bias_ih", call.bias_ih);
  visit("bias_hh", call.bias_hh);
  visit("weight_hh", call.weight_hh);
  visit("weight_ch", call.weight_ch);
  visit("weight_hr", call.weight_hr);
  visit("hx", call.hx);
  visit("cx", call.cx);
  visit("options", call.options);
}

template <class Visit>
void for_each_field(LstmForward& call, Visit&& visit) {
  for_each_field(static_cast<LstmCall&>(call), visit);
  visit("y", call.y);
  visit("hy", call.hy);
  visit("cy", call.cy);
  visit("cells", call.cells);
  visit("reserve", call.reserve);
  visit("checkpoints", call.checkpoints);
  visit("prepacked", call.prepacked);
  visit("is_prepacked", call.is_prepacked);
}

template <class Visit>
void for_each_field(LstmBackward& call, Visit&& visit) {
  for_each_field(static_cast<LstmCall&>(call), visit);
  visit("dy", call.dy);
  visit("dy_stride", call.dy_stride);
  visit("dhy", call.dhy);
  visit("dcy", call.dcy);
  visit("dcells", call.dcells);
  visit("y", call.y);
  visit("reserve", call.reserve);
  visit("checkpoints", call.checkpoints);
  visit("dinput", call.dinput);
  visit("dinput_stride", call.dinput_stride);
  visit("dweight_ih", call.dweight_ih);
  visit("dbias", call.dbias);
  visit("dweight_hh", call.dweight_hh);
  visit("dweight_ch", call.dweight_ch);
  visit("dweight_hr", call.dweight_hr);
  visit("dhx", call.dhx);
  visit("dcx", call.dcx);
}

}  // namespace fastlstm
