/* A multi-layer LSTM that is stepped: for inference on a stream, on the CPU.
 *
 * A stream packs a copy of the weights when it is made, as float32, bfloat16 or int8, and keeps the
 * state (h and c of every layer and row) between calls. A step allocates nothing.
 *
 * Sizes      T time steps, B batch_size (rows), I input_size, H hidden_size, L num_layers, and P,
 *            the size of h: proj_size, or H if that is 0. All arrays are float32 and row-major.
 * Gates      i, f, g, o, in this order, in 4H; peepholes i, f, o in 3H. As in torch.nn.LSTM.
 * Lifetimes  Every pointer in an argument belongs to the caller and is read or written during the
 *            call only, those of the weights too.
 * Errors     A function that returns int returns FASTLSTM_OK, or another code after which
 *            fastlstm_last_error() says what was expected and what came. The stream is then as it
 *            was before. No function throws.
 * Threads    A stream serves one call at a time: a call during another call on the same stream
 *            returns FASTLSTM_BUSY and does nothing. Different streams are independent. A stream
 *            that is made before fork() works in the child too, on threads of the child's own,
 *            unless it was in use at that moment.
 *
 * examples/stream has a program.
 */
#ifndef FASTLSTM_STREAM_H
#define FASTLSTM_STREAM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  FASTLSTM_OK = 0,
  FASTLSTM_INVALID = 1, /* an argument is wrong */
  FASTLSTM_BUSY = 2,    /* another thread is using the stream */
  FASTLSTM_FAILED = 3   /* no memory, or the system refused a thread */
};

/* How weights are stored. Sums are float32 in all of them. Int8 has a scale for each row of each
 * weight matrix; numbers are then multiplied as 16-bit integers with a scale for each row of x and
 * h, or as float32. Relative error of 50 steps against float64: float32 2e-7, bfloat16 2e-3, int8
 * 5e-3. Where a row of x has an infinity, int8 may return NaN. */
enum { FASTLSTM_FLOAT32 = 0, FASTLSTM_BFLOAT16 = 1, FASTLSTM_INT8 = 2 };

/* The weights of one layer, as torch.nn.LSTM stores them. */
typedef struct fastlstm_layer {
  const float* weight_ih; /* (4H, I), in the layers above the first (4H, P) */
  const float* weight_hh; /* (4H, P) */
  const float* bias_ih;   /* (4H), or NULL: none */
  const float* bias_hh;   /* (4H), or NULL: none */
  const float* weight_ch; /* (3H) peepholes, or NULL: none */
  const float* weight_hr; /* (P, H) the projection; NULL if and only if proj_size is 0 */
} fastlstm_layer;

typedef struct fastlstm_stream_config {
  int64_t batch_size, input_size, hidden_size;
  int64_t proj_size; /* 0: h is not projected */
  int64_t num_layers;
  int32_t weight_type;          /* FASTLSTM_FLOAT32, FASTLSTM_BFLOAT16 or FASTLSTM_INT8 */
  int32_t num_threads;          /* at most as many; fewer where that is faster */
  const char* isa;              /* the instruction set, or NULL: the fastest of this machine */
  const fastlstm_layer* layers; /* num_layers of them */
  const float* h_0;             /* (L, P) the state from which every row starts, or NULL: zeros */
  const float* c_0;             /* (L, H) or NULL: zeros */
} fastlstm_stream_config;

typedef struct fastlstm_stream fastlstm_stream;

/* Makes a stream in its initial state. Returns NULL if the config is wrong or there is no memory.
 * The weights take 4, 2 or 1 bytes each. */
fastlstm_stream* fastlstm_stream_create(const fastlstm_stream_config* config);

/* Frees a stream, which no other thread may be using. NULL is allowed. */
void fastlstm_stream_destroy(fastlstm_stream* stream);

/* One step of every row: x (B, I), y (B, P). y is the last layer's h. x and y do not overlap. */
int fastlstm_stream_step(fastlstm_stream* stream, const float* x, float* y);

/* T steps, T >= 0, with the results of single steps to the bit: x (T, B, I), y (T, B, P). It is up
 * to twice as fast as single steps, because T steps read W_ih of each layer together.
 * x_stride: numbers from one step, row and input to the next, or NULL if x is contiguous.
 * y_stride: numbers from one step and row to the next, or NULL if y is contiguous. */
int fastlstm_stream_run(fastlstm_stream* stream, int64_t T, const float* x,
                        const int64_t x_stride[3], float* y, const int64_t y_stride[2]);

/* Changes B, up to the batch_size of the config, and sets all rows to the initial state. */
int fastlstm_stream_resize(fastlstm_stream* stream, int64_t batch_size);

/* Copies the state: h (L, B, P), c (L, B, H). */
int fastlstm_stream_get_state(fastlstm_stream* stream, float* h, float* c);
int fastlstm_stream_set_state(fastlstm_stream* stream, const float* h, const float* c);

/* Sets rows to the initial state. rows: (B) bytes, nonzero for the rows; NULL: all. */
int fastlstm_stream_reset(fastlstm_stream* stream, const uint8_t* rows);

/* Packs other weights, of the same sizes, as well as another initial state. Keeps the state. */
int fastlstm_stream_set_weights(fastlstm_stream* stream, const fastlstm_layer* layers,
                                const float* h_0, const float* c_0);

/* The most threads of a step. It runs on one where other programs keep the cores busy. */
int fastlstm_stream_num_threads(const fastlstm_stream* stream);

/* One sentence about the last error in this thread; empty if there was none. Valid until the next
 * error in this thread. */
const char* fastlstm_last_error(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* FASTLSTM_STREAM_H */
