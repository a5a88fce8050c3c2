// The arguments of the kernels of LSTMs with layer norm. lstm.h says how such structs are read.
//
// The input is igates, normalised and with biases in: I and P are 0, checkpoint_every is 0, and
// weight_ih, bias_ih, bias_hh, weight_hr and prepacked are none. A step of the reserve has 9H
// numbers: 5H as in lstm.h and then W_hh (hidden_mask * h'), 4H. Here, c~ is the c of a step before
// zoneout.
#pragma once

#include "lstm.h"

namespace fastlstm {

// The options of the cells; all but norm_hh may be null. Masks have no gradient.
struct CellNorms {
  const void* norm_hh;       // (G, 4H) the gain of the norm of W_hh h' over the 4H gates
  const void* norm_c;        // (G, 2, H) gain and bias of the norm of c~
  const void* hidden_mask;   // (G, B, H) a factor of h' in W_hh h'
  const void* keep_h;        // (T, B, G, H) the share of h' in h
  int64_t keep_h_stride[3];  // of T, B, G
  const void* keep_c;        // (T, B, G, H) the share of c' in c
  int64_t keep_c_stride[3];  // of T, B, G
  const double* cell_clip;   // one number: the largest magnitude of c~
};

struct LayerNormForward : LstmForward {
  CellNorms norms;
};

// y and hx are read for dweight_hh alone.
struct LayerNormBackward : LstmBackward {
  CellNorms norms;
  void* dnorm_hh;  // (G, 4H), float where dtype is bfloat16
  void* dnorm_c;   // (G, 2, H), the same; null if norm_c is
};

template <class Visit>
void for_each_field(CellNorms& norms, Visit&& visit) {
  visit("norm_hh", norms.norm_hh);
  visit("norm_c", norms.norm_c);
  visit("hidden_mask", norms.hidden_mask);
  visit("keep_h", norms.keep_h);
  visit("keep_h_stride", norms.keep_h_stride);
  visit("keep_c", norms.keep_c);
  visit("keep_c_stride", norms.keep_c_stride);
  visit("cell_clip", norms.cell_clip);
}

template <class Visit>
void for_each_field(LayerNormForward& call, Visit&& visit) {
  for_each_field(static_cast<LstmForward&>(call), visit);
  for_each_field(call.norms, visit);
}

template <class Visit>
void for_each_field(LayerNormBackward& call, Visit&& visit) {
  for_each_field(static_cast<LstmBackward&>(call), visit);
  for_each_field(call.norms, visit);
  visit("dnorm_hh", call.dnorm_hh);
  visit("dnorm_c", call.dnorm_c);
}

}  // namespace fastlstm
