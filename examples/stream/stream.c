/* Steps an LSTM over a sequence that a file holds: stream INPUT OUTPUT
 *
 * INPUT, as check.py writes it: 8 integers of 64 bits, which are weight_type, B, I, H, proj_size,
 * L, T and whether there are peepholes; then float32 arrays: for each layer weight_ih, weight_hh,
 * bias_ih, bias_hh, weight_ch if there are peepholes, weight_hr if there is a projection; then
 * x (T, B, I). OUTPUT: y (T, B, P).
 */
#include "stream.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char* what) {
  fprintf(stderr, "stream: %s\n", what);
  exit(1);
}

static void* allocate(int64_t count, size_t size) {
  void* memory = calloc((size_t)count + 1, size);
  if (!memory) fail("not enough memory");
  return memory;
}

static float* read_floats(FILE* file, int64_t count) {
  float* numbers = allocate(count, sizeof(float));
  if (fread(numbers, sizeof(float), (size_t)count, file) != (size_t)count) {
    fail("the input is too short");
  }
  return numbers;
}

int main(int count, char** arguments) {
  if (count != 3) fail("expected the arguments INPUT OUTPUT");
  FILE* in = fopen(arguments[1], "rb");
  FILE* out = fopen(arguments[2], "wb");
  if (!in || !out) fail("a file cannot be opened");
  int64_t header[8];
  if (fread(header, sizeof(int64_t), 8, in) != 8) fail("the input is too short");
  const int64_t B = header[1], I = header[2], H = header[3], proj_size = header[4];
  const int64_t L = header[5], T = header[6], has_peepholes = header[7];
  const int64_t P = proj_size ? proj_size : H;

  fastlstm_layer* layers = allocate(L, sizeof(fastlstm_layer));
  for (int64_t l = 0; l < L; ++l) {
    layers[l].weight_ih = read_floats(in, 4 * H * (l ? P : I));
    layers[l].weight_hh = read_floats(in, 4 * H * P);
    layers[l].bias_ih = read_floats(in, 4 * H);
    layers[l].bias_hh = read_floats(in, 4 * H);
    layers[l].weight_ch = has_peepholes ? read_floats(in, 3 * H) : NULL;
    layers[l].weight_hr = proj_size ? read_floats(in, P * H) : NULL;
  }
  fastlstm_stream_config config = {0};
  config.weight_type = (int32_t)header[0];
  config.batch_size = B;
  config.input_size = I;
  config.hidden_size = H;
  config.proj_size = proj_size;
  config.num_layers = L;
  config.num_threads = 2;
  config.layers = layers;
  fastlstm_stream* stream = fastlstm_stream_create(&config);
  if (!stream) fail(fastlstm_last_error());

  /* The stream has its own copy of the weights. */
  for (int64_t l = 0; l < L; ++l) {
    free((void*)layers[l].weight_ih);
    free((void*)layers[l].weight_hh);
    free((void*)layers[l].bias_ih);
    free((void*)layers[l].bias_hh);
    free((void*)layers[l].weight_ch);
    free((void*)layers[l].weight_hr);
  }
  free(layers);

  float* y = allocate(B * P, sizeof(float));
  for (int64_t t = 0; t < T; ++t) {
    float* x = read_floats(in, B * I);
    if (fastlstm_stream_step(stream, x, y) != FASTLSTM_OK) fail(fastlstm_last_error());
    if (fwrite(y, sizeof(float), (size_t)(B * P), out) != (size_t)(B * P)) fail("a write failed");
    free(x);
  }
  free(y);
  fastlstm_stream_destroy(stream);
  fclose(in);
  if (fclose(out)) fail("a write failed");
  printf("%" PRId64 " steps of %" PRId64 " rows\n", T, B);
  return 0;
}
