// The coordinatewise LSTM optimizer on a CPU: the forward step, and the replay of a window with its backward pass.
//
// Columns (coordinates) don't interact, so the work is cut into blocks of a few vectors of columns that stay in the
// core's own cache: a block goes through all layers of a step, or through a whole window forward and backward, before
// the next is touched. Inside a block every row (a feature, a hidden unit, a gate) is contiguous, so that all
// arithmetic is that of whole vectors, and the matrix products keep their sums in registers.
//
// kernels/reference.py is the same in plain PyTorch, with the same names. Layouts: weights [4 hidden, inputs + hidden]
// with the gates in the order input, forget, output, candidate; states [hidden, columns]; gradients, or
// what an optimizer makes of them, [steps, rows, columns]; updates [columns].
//
// Vectors are those of GCC and Clang (vector_size), as wide as the CPU that this is compiled for. Not to be compiled
// with -ffast-math: NaN must stay NaN, for divergence to be seen.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

constexpr int VECTORS = 2;       // of a row of a block
constexpr int FLUSH_EVERY = 32;  // blocks whose weight gradients are summed in single precision

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
using Integers = Vector<int32_t>;

template <typename T>
constexpr int LANES = BYTES / static_cast<int>(sizeof(T));

template <typename T>
constexpr int BLOCK = VECTORS * LANES<T>;  // columns

template <typename T>
INLINE Vector<T> broadcast(T value) {
  return Vector<T>{} + value;
}

// The smaller and the larger of x and a bound; NaN stays NaN. GCC doesn't find these instructions by itself.
#if defined(__AVX512F__)
INLINE Vector<float> minimum(Vector<float> x, float high) { return _mm512_min_ps(broadcast(high), x); }
INLINE Vector<float> maximum(Vector<float> x, float low) { return _mm512_max_ps(broadcast(low), x); }
#elif defined(__AVX__)
INLINE Vector<float> minimum(Vector<float> x, float high) { return _mm256_min_ps(broadcast(high), x); }
INLINE Vector<float> maximum(Vector<float> x, float low) { return _mm256_max_ps(broadcast(low), x); }
#else
INLINE Vector<float> minimum(Vector<float> x, float high) { return x > high ? broadcast(high) : x; }
INLINE Vector<float> maximum(Vector<float> x, float low) { return x < low ? broadcast(low) : x; }
#endif
INLINE Vector<double> minimum(Vector<double> x, double high) { return x > high ? broadcast(high) : x; }
INLINE Vector<double> maximum(Vector<double> x, double low) { return x < low ? broadcast(low) : x; }

// e^x, for x cut off at ±87: 2^n e^r with |r| ≤ ln 2 / 2, and a polynomial for e^r that is good to 1.1e-7 (fitted to
// minimise the largest relative error).
INLINE Vector<float> exponential(Vector<float> x) {
  constexpr float shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer, which its low bits then hold
  x = maximum(minimum(x, 87.0f), -87.0f);
  const Vector<float> shifted = x * 1.44269504088896341f + shift;
  const Vector<float> n = shifted - shift;
  const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Vector<float> polynomial = broadcast(0.0083125f);
  polynomial = polynomial * r + 0.04189033f;
  polynomial = polynomial * r + 0.16667115f;
  polynomial = polynomial * r + 0.4999923f;
  polynomial = polynomial * r + 1.0f;
  polynomial = polynomial * r + 1.0f;
  const Integers exponent = ((Integers)shifted << 23) + (127 << 23);
  return polynomial * (Vector<float>)exponent;
}

INLINE Vector<double> exponential(Vector<double> x) {
  for (int lane = 0; lane < LANES<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// ln x for normal x > 0: x = 2^n m with √½ ≤ m < √2, and ln m = 2 artanh((m − 1) / (m + 1)) by its series.
INLINE Vector<float> logarithm(Vector<float> x) {
  constexpr int32_t root_half = 0x3f3504f3;  // the bits of √½
  const Integers bits = (Integers)x - root_half;
  const Integers mantissa = (bits & 0x007fffff) + root_half;
  const Vector<float> m = (Vector<float>)mantissa;
  const Vector<float> n = __builtin_convertvector(bits >> 23, Vector<float>);
  const Vector<float> s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  Vector<float> series = broadcast(2.0f / 9);
  series = series * s2 + 2.0f / 7;
  series = series * s2 + 2.0f / 5;
  series = series * s2 + 2.0f / 3;
  series = series * s2 + 2.0f;
  const Vector<float> result = n * 0.693147180559945f + series * s;
  return x <= std::numeric_limits<float>::max() ? result : x;  // infinity and NaN
}

INLINE Vector<double> logarithm(Vector<double> x) {
  for (int lane = 0; lane < LANES<double>; ++lane) x[lane] = std::log(x[lane]);
  return x;
}

// σ(−x)
template <typename T>
INLINE Vector<T> sigmoid_of_minus(Vector<T> x) {
  return T(1) / (T(1) + exponential(x));
}

// --- what the caller gives -------------------------------------------------------------------------------------------

struct Network {
  int64_t hidden, layers, rows;  // rows: read of a column
  int64_t log_sign, squash;      // whether what is read is preprocessed, and whether the update is a tanh
  double p, output_scale;
  const void* const* weights;  // of each layer
  const void* const* biases;
  const void* readout_weight;
  const void* readout_bias;
};

// The same, typed, and with what is derived from it.
template <typename T>
struct Model {
  int64_t hidden, layers, rows, features;
  bool log_sign, squash;
  T p, smallest, largest, output_scale;
  // Of each layer, [4 hidden, inputs + hidden] and [4 hidden]: negated, and the candidate's doubled too, because
  // σ(x) = 1 / (1 + e^−x) and tanh x = 2 σ(2x) − 1.
  std::vector<std::vector<T>> weights, biases;
  std::vector<std::vector<T>> transposed;  // of each layer, [inputs + hidden, 4 hidden], as given
  const T* readout_weight;
  T readout_bias;

  Model(const Network& network, bool backward)
      : hidden(network.hidden),
        layers(network.layers),
        rows(network.rows),
        features(network.log_sign ? 2 * rows : rows),
        log_sign(network.log_sign),
        squash(network.squash),
        p(T(network.p)),
        smallest(T(std::exp(-network.p))),
        largest(T(std::exp(network.p))),
        output_scale(T(network.output_scale)),
        readout_weight(static_cast<const T*>(network.readout_weight)),
        readout_bias(*static_cast<const T*>(network.readout_bias)) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      const T* const weight = static_cast<const T*>(network.weights[layer]);
      const T* const bias = static_cast<const T*>(network.biases[layer]);
      const int64_t rows = 4 * hidden, columns = inputs(layer) + hidden;
      weights.emplace_back(rows * columns);
      biases.emplace_back(rows);
      if (backward) transposed.emplace_back(rows * columns);
      for (int64_t row = 0; row < rows; ++row) {
        const T factor = row < 3 * hidden ? T(-1) : T(-2);
        biases[layer][row] = factor * bias[row];
        for (int64_t column = 0; column < columns; ++column) {
          weights[layer][row * columns + column] = factor * weight[row * columns + column];
          if (backward) transposed[layer][column * rows + row] = weight[row * columns + column];
        }
      }
    }
  }

  int64_t inputs(int64_t layer) const { return layer == 0 ? features : hidden; }

  int64_t parameters() const {  // read-out first, then all weights, then all biases
    int64_t count = hidden + 1;
    for (int64_t layer = 0; layer < layers; ++layer) count += 4 * hidden * (inputs(layer) + hidden + 1);
    return count;
  }
};

// --- rows of a block -------------------------------------------------------------------------------------------------

template <typename T>
INLINE Vector<T> at(const T* block, int64_t row, int vector) {
  return *reinterpret_cast<const Vector<T>*>(block + row * BLOCK<T> + vector * LANES<T>);
}

template <typename T>
INLINE void put(T* block, int64_t row, int vector, Vector<T> value) {
  *reinterpret_cast<Vector<T>*>(block + row * BLOCK<T> + vector * LANES<T>) = value;
}

// `rows` rows of `count` ≤ BLOCK columns out of a wider matrix into a block; what is missing becomes 0. The same rows
// of the next block are called into the cache meanwhile: they lie far apart, and no CPU would guess them.
template <typename T>
void load(T* block, const T* matrix, int64_t stride, int64_t rows, int64_t count) {
  for (int64_t row = 0; row < rows; ++row, block += BLOCK<T>, matrix += stride) {
    if (count == BLOCK<T>) {
      std::memcpy(block, matrix, BLOCK<T> * sizeof(T));
      for (int v = 1; v <= VECTORS; ++v) __builtin_prefetch(matrix + BLOCK<T> + v * LANES<T> - 1);
    } else {
      std::memset(block, 0, BLOCK<T> * sizeof(T));
      std::memcpy(block, matrix, count * sizeof(T));
    }
  }
}

template <typename T>
void store(T* matrix, int64_t stride, const T* block, int64_t rows, int64_t count) {
  for (int64_t row = 0; row < rows; ++row, block += BLOCK<T>, matrix += stride) {
    if (count == BLOCK<T>) {
      std::memcpy(matrix, block, BLOCK<T> * sizeof(T));
      for (int v = 1; v <= VECTORS; ++v) __builtin_prefetch(matrix + BLOCK<T> + v * LANES<T> - 1, 1);
    } else {
      std::memcpy(matrix, block, count * sizeof(T));
    }
  }
}

// A value that is used many times: kept in a register, where the compiler would read it from memory at each use.
#if defined(__x86_64__)
#define IN_REGISTER(x) asm("" : "+v"(x))
#else
#define IN_REGISTER(x)
#endif

// sums[row][vector] += Σ_k weight[row][k] block[k]
template <typename T, int ROWS>
INLINE void multiply(Vector<T> (&sums)[ROWS][VECTORS], const T* weight, int64_t stride, const T* block, int64_t inner) {
  for (int64_t k = 0; k < inner; ++k) {
    Vector<T> x[VECTORS];
    for (int v = 0; v < VECTORS; ++v) x[v] = at(block, k, v);
    for (int row = 0; row < ROWS; ++row)
      for (int v = 0; v < VECTORS; ++v) sums[row][v] += weight[row * stride + k] * x[v];
  }
}

// A matrix product with a block: out = weight · (above, below) + bias, or + out where there is no bias. The columns of
// `weight` [rows, n_above + n_below] belong to the rows of `above`, then to those of `below`.
template <typename T, int ROWS>
INLINE void product_rows(const T* weight, const T* bias, const T* above, int64_t n_above, const T* below,
                         int64_t n_below, T* out) {
  const int64_t stride = n_above + n_below;
  Vector<T> sums[ROWS][VECTORS];
  for (int row = 0; row < ROWS; ++row)
    for (int v = 0; v < VECTORS; ++v) sums[row][v] = bias != nullptr ? broadcast(bias[row]) : at(out, row, v);
  multiply<T, ROWS>(sums, weight, stride, above, n_above);
  multiply<T, ROWS>(sums, weight + n_above, stride, below, n_below);
  for (int row = 0; row < ROWS; ++row)
    for (int v = 0; v < VECTORS; ++v) put(out, row, v, sums[row][v]);
}

template <typename T>
void product(int64_t rows, const T* weight, const T* bias, const T* above, int64_t n_above, const T* below,
             int64_t n_below, T* out) {
  constexpr int AT_ONCE = 8;  // rows, each with VECTORS sums in registers
  int64_t row = 0;
  const auto skip = [&](int count) {
    row += count;
    weight += count * (n_above + n_below);
    out += count * BLOCK<T>;
    if (bias != nullptr) bias += count;
  };
  for (; row + AT_ONCE <= rows; skip(AT_ONCE))
    product_rows<T, AT_ONCE>(weight, bias, above, n_above, below, n_below, out);
  for (; row + 4 <= rows; skip(4)) product_rows<T, 4>(weight, bias, above, n_above, below, n_below, out);
  for (; row < rows; skip(1)) product_rows<T, 1>(weight, bias, above, n_above, below, n_below, out);
}

// --- the forward pass ------------------------------------------------------------------------------------------------

// `count` columns of what is read in a step, as features; see preprocessing.py.
template <typename T>
void read(const Model<T>& model, T* features, const T* matrix, int64_t stride, int64_t count) {
  load(features, matrix, stride, model.rows, count);
  if (!model.log_sign) return;
  for (int64_t row = 0; row < model.rows; ++row)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector<T> g = at(features, row, v), magnitude = g < T(0) ? -g : g;
      put(features, row, v, logarithm(maximum(magnitude, model.smallest)) / model.p);
      put(features, model.rows + row, v, maximum(minimum(g * model.largest, T(1)), T(-1)));
    }
}

// One layer's step for a block. Afterwards `gates` [4 hidden] holds all four after their nonlinearities and `tanh_c` the
// tanh of c, as the backward pass wants them.
template <typename T>
void cell(const Model<T>& model, int64_t layer, const T* x, const T* h_before, const T* c_before, T* h, T* c, T* gates,
          T* tanh_c) {
  const int64_t hidden = model.hidden;
  product(4 * hidden, model.weights[layer].data(), model.biases[layer].data(), x, model.inputs(layer), h_before, hidden,
          gates);
  // In two loops, so that no step of either waits for the one before.
  for (int64_t row = 0; row < hidden; ++row)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector<T> i = sigmoid_of_minus<T>(at(gates, row, v));
      const Vector<T> f = sigmoid_of_minus<T>(at(gates, hidden + row, v));
      const Vector<T> candidate = T(2) * sigmoid_of_minus<T>(at(gates, 3 * hidden + row, v)) - T(1);
      put(gates, row, v, i);
      put(gates, hidden + row, v, f);
      put(gates, 3 * hidden + row, v, candidate);
      put(c, row, v, f * at(c_before, row, v) + i * candidate);
    }
  for (int64_t row = 0; row < hidden; ++row)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector<T> o = sigmoid_of_minus<T>(at(gates, 2 * hidden + row, v));
      const Vector<T> bounded = T(2) * sigmoid_of_minus<T>(T(-2) * at(c, row, v)) - T(1);
      put(gates, 2 * hidden + row, v, o);
      put(tanh_c, row, v, bounded);
      put(h, row, v, o * bounded);
    }
}

// The updates of a block before they are scaled, out of the last layer's h.
template <typename T>
void read_out(const Model<T>& model, const T* h, T* out) {
  product<T>(1, model.readout_weight, &model.readout_bias, h, model.hidden, nullptr, 0, out);
  if (!model.squash) return;
  for (int v = 0; v < VECTORS; ++v) put(out, 0, v, T(2) * sigmoid_of_minus<T>(T(-2) * at(out, 0, v)) - T(1));
}

// --- the backward pass -----------------------------------------------------------------------------------------------

// Gates become derivatives with respect to what went into their nonlinearities; into_c goes on to the step before.
template <typename T>
void cell_backward(int64_t hidden, T* gates, const T* tanh_c, const T* c_before, const T* into_h, T* into_c) {
  for (int64_t row = 0; row < hidden; ++row)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector<T> i = at(gates, row, v), f = at(gates, hidden + row, v);
      const Vector<T> o = at(gates, 2 * hidden + row, v), candidate = at(gates, 3 * hidden + row, v);
      const Vector<T> bounded = at(tanh_c, row, v), from_h = at(into_h, row, v);
      const Vector<T> from_c = at(into_c, row, v) + from_h * o * (T(1) - bounded * bounded);
      put(gates, row, v, from_c * candidate * i * (T(1) - i));
      put(gates, hidden + row, v, from_c * at(c_before, row, v) * f * (T(1) - f));
      put(gates, 2 * hidden + row, v, from_h * bounded * o * (T(1) - o));
      put(gates, 3 * hidden + row, v, from_c * i * (T(1) - candidate * candidate));
      put(into_c, row, v, from_c * f);
    }
}

// Per-lane sums of products over the steps of a window, added to `sums` [4, columns of the weight]:
// Σ_t Σ_v left[t][row] right[t][column], for 4 rows and COLUMNS columns.
template <typename T, int COLUMNS>
INLINE void outer_products(const T* left, const T* right, int64_t stride, int64_t steps, Vector<T>* sums,
                           int64_t width) {
  Vector<T> products[4][COLUMNS] = {};
  for (int64_t t = 0; t < steps; ++t, left += stride, right += stride)
    for (int v = 0; v < VECTORS; ++v) {
      Vector<T> x[COLUMNS];
      for (int column = 0; column < COLUMNS; ++column) {
        x[column] = at(right, column, v);
        IN_REGISTER(x[column]);
      }
      for (int row = 0; row < 4; ++row) {
        const Vector<T> y = at(left, row, v);
        for (int column = 0; column < COLUMNS; ++column) products[row][column] += y * x[column];
      }
    }
  for (int row = 0; row < 4; ++row)
    for (int column = 0; column < COLUMNS; ++column) sums[row * width + column] += products[row][column];
}

template <typename T>
void outer_products(const T* left, const T* right, int64_t stride, int64_t steps, Vector<T>* sums, int64_t width,
                    int64_t columns) {
  int64_t column = 0;
  for (; column + 5 <= columns; column += 5)
    outer_products<T, 5>(left, right + column * BLOCK<T>, stride, steps, sums + column, width);
  for (; column + 2 <= columns; column += 2)
    outer_products<T, 2>(left, right + column * BLOCK<T>, stride, steps, sums + column, width);
  for (; column < columns; ++column)
    outer_products<T, 1>(left, right + column * BLOCK<T>, stride, steps, sums + column, width);
}

// --- memory ----------------------------------------------------------------------------------------------------------

template <typename T>
class Buffer {  // aligned, zeroed
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64 + 64;
    if (posix_memalign(&memory_, 64, bytes) != 0) throw std::bad_alloc();
    std::memset(memory_, 0, bytes);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(memory_); }
  T* get() { return static_cast<T*>(memory_); }

 private:
  void* memory_ = nullptr;
};

// Vanishing numbers (denormals) are flushed to 0, on which a CPU would compute many times more slowly.
class FlushDenormals {
#if defined(__SSE__)
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// What one thread needs to replay a block, and its sums.
template <typename T>
struct Replay {
  const Model<T>& model;
  const int64_t steps;
  // A step's record: features, and of each layer h, c, tanh c (a hidden each) and the gates (4 hidden), a row a block
  // each. Record 0 holds the state before the first step, record t + 1 what step t made.
  const int64_t layer_rows = 7 * model.hidden;
  const int64_t record = (model.features + model.layers * layer_rows) * BLOCK<T>;
  Buffer<T> records, into_h, into_c, cotangents;
  Buffer<Vector<T>> sums;       // per lane, of the blocks since the last flush
  std::vector<double> totals;  // in the order of the parameters

  Replay(const Model<T>& model, int64_t steps)
      : model(model),
        steps(steps),
        records((steps + 1) * record),
        into_h(model.layers * model.hidden * BLOCK<T>),
        into_c(model.layers * model.hidden * BLOCK<T>),
        cotangents(steps * BLOCK<T>),
        sums(model.parameters()),
        totals(model.parameters()) {}

  T* features(int64_t t) { return records.get() + t * record; }
  T* h(int64_t t, int64_t layer) { return features(t) + (model.features + layer * layer_rows) * BLOCK<T>; }
  T* c(int64_t t, int64_t layer) { return h(t, layer) + model.hidden * BLOCK<T>; }
  T* tanh_c(int64_t t, int64_t layer) { return h(t, layer) + 2 * model.hidden * BLOCK<T>; }
  T* gates(int64_t t, int64_t layer) { return h(t, layer) + 3 * model.hidden * BLOCK<T>; }

  void block(const T* grads, int64_t grads_step, int64_t grads_stride, const T* const* state, int64_t state_stride,
             const T* into_updates, int64_t into_updates_stride, int64_t count) {
    const int64_t hidden = model.hidden, layers = model.layers;
    for (int64_t layer = 0; layer < layers; ++layer) {
      load(h(0, layer), state[2 * layer], state_stride, hidden, count);
      load(c(0, layer), state[2 * layer + 1], state_stride, hidden, count);
    }
    for (int64_t t = 1; t <= steps; ++t) {
      read(model, features(t), grads + (t - 1) * grads_step, grads_stride, count);
      for (int64_t layer = 0; layer < layers; ++layer)
        cell(model, layer, layer == 0 ? features(t) : h(t, layer - 1), h(t - 1, layer), c(t - 1, layer), h(t, layer),
             c(t, layer), gates(t, layer), tanh_c(t, layer));
    }
    load(cotangents.get(), into_updates, into_updates_stride, steps, count);  // 0 in what is missing: no gradient
    std::memset(into_h.get(), 0, layers * hidden * BLOCK<T> * sizeof(T));
    std::memset(into_c.get(), 0, layers * hidden * BLOCK<T> * sizeof(T));
    for (int64_t t = steps; t >= 1; --t) backward(t);
    weight_gradients();
  }

  void backward(int64_t t) {
    const int64_t hidden = model.hidden, rows = 4 * hidden, top = model.layers - 1;
    T* const into_top = into_h.get() + top * hidden * BLOCK<T>;
    alignas(BYTES) T out[BLOCK<T>];
    if (model.squash) read_out(model, h(t, top), out);
    for (int v = 0; v < VECTORS; ++v) {
      Vector<T> into_out = at(cotangents.get(), t - 1, v) * model.output_scale;
      if (model.squash) into_out *= T(1) - at(out, 0, v) * at(out, 0, v);
      for (int64_t row = 0; row < hidden; ++row) {
        sums.get()[row] += into_out * at(h(t, top), row, v);
        put(into_top, row, v, at(into_top, row, v) + model.readout_weight[row] * into_out);
      }
      sums.get()[hidden] += into_out;
    }
    for (int64_t layer = top; layer >= 0; --layer) {
      T* const into_this = into_h.get() + layer * hidden * BLOCK<T>;
      T* const into_raw = gates(t, layer);
      cell_backward(hidden, into_raw, tanh_c(t, layer), c(t - 1, layer), into_this,
                    into_c.get() + layer * hidden * BLOCK<T>);
      const T* transposed = model.transposed[layer].data();
      if (layer > 0) product<T>(hidden, transposed, nullptr, into_raw, rows, nullptr, 0, into_this - hidden * BLOCK<T>);
      std::memset(into_this, 0, hidden * BLOCK<T> * sizeof(T));
      product<T>(hidden, transposed + model.inputs(layer) * rows, nullptr, into_raw, rows, nullptr, 0, into_this);
    }
  }

  void weight_gradients() {
    const int64_t hidden = model.hidden, rows = 4 * hidden;
    Vector<T>* into_weight = sums.get() + hidden + 1;
    Vector<T>* into_bias = sums.get() + model.parameters() - model.layers * rows;
    for (int64_t layer = 0; layer < model.layers; ++layer, into_bias += rows) {
      const int64_t inputs = model.inputs(layer), width = inputs + hidden;
      const T* x = layer == 0 ? features(1) : h(1, layer - 1);
      for (int64_t row = 0; row < rows; row += 4, into_weight += 4 * width) {  // these rows stay in the cache
        const T* into_raw = gates(1, layer) + row * BLOCK<T>;
        outer_products<T>(into_raw, x, record, steps, into_weight, width, inputs);
        outer_products<T>(into_raw, h(0, layer), record, steps, into_weight + inputs, width, hidden);
        for (int64_t t = 0; t < steps; ++t)
          for (int now = 0; now < 4; ++now)
            for (int v = 0; v < VECTORS; ++v) into_bias[row + now] += at(into_raw + t * record, now, v);
      }
    }
  }

  void flush() {
    for (int64_t index = 0; index < model.parameters(); ++index) {
      for (int lane = 0; lane < LANES<T>; ++lane) totals[index] += sums.get()[index][lane];
      sums.get()[index] = Vector<T>{};
    }
  }
};

// --- all blocks, in threads ------------------------------------------------------------------------------------------

template <typename T>
int step(const Network& network, int64_t columns, const T* grads, const T* const* state, int64_t state_stride,
         T* updates, T* const* following, int64_t following_stride, int64_t threads) {
  try {
    const Model<T> model(network, false);
    const int64_t hidden = model.hidden, blocks = (columns + BLOCK<T> - 1) / BLOCK<T>;
    threads = std::max<int64_t>(1, std::min(threads, blocks));
    const int64_t rows = model.features + 10 * hidden;
    Buffer<T> memory(threads * rows * BLOCK<T>);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      FlushDenormals guard;
      T* const features = memory.get() + thread * rows * BLOCK<T>;
      T* const h_before = features + model.features * BLOCK<T>;
      T* const c_before = h_before + hidden * BLOCK<T>;
      T* h = c_before + hidden * BLOCK<T>;
      T* below = h + hidden * BLOCK<T>;
      T* const c = below + hidden * BLOCK<T>;
      T* const gates = c + hidden * BLOCK<T>;
      T* const tanh_c = gates + 4 * hidden * BLOCK<T>;
      for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; ++block) {
        const int64_t begin = block * BLOCK<T>, count = std::min<int64_t>(BLOCK<T>, columns - begin);
        read(model, features, grads + begin, columns, count);
        for (int64_t layer = 0; layer < model.layers; ++layer) {
          load(h_before, state[2 * layer] + begin, state_stride, hidden, count);
          load(c_before, state[2 * layer + 1] + begin, state_stride, hidden, count);
          cell(model, layer, layer == 0 ? features : below, h_before, c_before, h, c, gates,
               tanh_c);
          store(following[2 * layer] + begin, following_stride, h, hidden, count);
          store(following[2 * layer + 1] + begin, following_stride, c, hidden, count);
          std::swap(h, below);
        }
        alignas(BYTES) T update[BLOCK<T>];
        read_out(model, below, update);
        for (int v = 0; v < VECTORS; ++v) put(update, 0, v, at(update, 0, v) * model.output_scale);
        store(updates + begin, columns, update, 1, count);
      }
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

template <typename T>
int replay(const Network& network, int64_t steps, int64_t columns, const T* grads, int64_t grads_step,
           int64_t grads_stride, const T* const* state, int64_t state_stride, const T* into_updates,
           int64_t into_updates_stride, double* totals, int64_t threads) {
  try {
    const Model<T> model(network, true);
    const int64_t blocks = (columns + BLOCK<T> - 1) / BLOCK<T>;
    threads = std::max<int64_t>(1, std::min(threads, blocks));
    std::vector<std::unique_ptr<Replay<T>>> workers;
    for (int64_t thread = 0; thread < threads; ++thread) workers.emplace_back(new Replay<T>(model, steps));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      FlushDenormals guard;
      Replay<T>& worker = *workers[thread];
      std::vector<const T*> columns_of(2 * model.layers);
      for (int64_t block = blocks * thread / threads, done = 1; block < blocks * (thread + 1) / threads;
           ++block, ++done) {
        const int64_t begin = block * BLOCK<T>, count = std::min<int64_t>(BLOCK<T>, columns - begin);
        for (int64_t index = 0; index < 2 * model.layers; ++index) columns_of[index] = state[index] + begin;
        worker.block(grads + begin, grads_step, grads_stride, columns_of.data(), state_stride, into_updates + begin,
                     into_updates_stride, count);
        if (done % FLUSH_EVERY == 0) worker.flush();
      }
      worker.flush();
    }
    for (const auto& worker : workers)
      for (int64_t index = 0; index < model.parameters(); ++index) totals[index] += worker->totals[index];
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

// Each returns 0, or 1 where memory doesn't suffice. Strides are those of rows, in elements, and `grads_step` is that of
// steps; `totals` is added to.
#define ENTRY_POINTS(T, SUFFIX)                                                                                       \
  extern "C" int l2l_step_##SUFFIX(const Network* network, int64_t columns, const T* grads, const T* const* state,    \
                                   int64_t state_stride, T* updates, T* const* following, int64_t following_stride,   \
                                   int64_t threads) {                                                                 \
    return step<T>(*network, columns, grads, state, state_stride, updates, following, following_stride, threads);     \
  }                                                                                                                   \
  extern "C" int l2l_replay_##SUFFIX(const Network* network, int64_t steps, int64_t columns, const T* grads,          \
                                     int64_t grads_step, int64_t grads_stride, const T* const* state,                 \
                                     int64_t state_stride, const T* into_updates, int64_t into_updates_stride,        \
                                     double* totals, int64_t threads) {                                               \
    return replay<T>(*network, steps, columns, grads, grads_step, grads_stride, state, state_stride, into_updates,    \
                     into_updates_stride, totals, threads);                                                           \
  }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
