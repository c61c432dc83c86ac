// What stands between the matrix products of a decoder layer, on CPU: see `kernels.py`.
//
// Every function computes in float32 and rounds once at the end, unless said otherwise; a token's
// numbers depend on that token alone.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kTogether = 30000;  // numbers that are worth waking other threads
constexpr int64_t kMaxHead = 512;     // numbers of a head

struct Float32 {
  using Stored = float;
  static inline float load(float x) { return x; }
  static inline float store(float x) { return x; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static inline float load(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  static inline uint16_t store(float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

// exp within 2 units in the last place for -87 <= x <= 88, which it is held to
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const float n = (x * 1.44269504088896341f + magic) - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace

extern "C" {

// x / sqrt(mean(x^2) + epsilon) * weight over each of `rows` rows.
struct SloserveNorm {
  const void* from;  // `from_row` numbers from row to row
  void* to;          // contiguous
  const float* weight;
  int64_t rows, size, from_row;
  float epsilon;
  int32_t round_first;  // round to the stored type before the weight, and again after it
};

// Queries and keys of each token, side by side: normed where there are weights, then turned by
// the position. Head h's first `turned` numbers are halves (a, b) of pairs:
//   a' = a cos - b sin, b' = b cos + a sin.
struct SloserveTurn {
  void* heads;                     // (tokens, num_heads, size), in place
  const void *cosine, *sine;       // (tokens, turned)
  const float *query_weight, *key_weight;  // (size,) or null
  int64_t tokens, token_stride, num_queries, num_keys, size, turned;
  float epsilon;
  int32_t round_first;
};

// act(gate) * up, from rows of (gate, up).
struct SloserveGate {
  const void* from;  // (rows, 2 * size)
  void* to;          // (rows, size)
  int64_t rows, size;
  int32_t gelu;  // 0: silu; 1: gelu by tanh
};
}

namespace {

template <class Number>
inline void norm_row(const typename Number::Stored* from, typename Number::Stored* to,
                     const float* weight, int64_t size, float epsilon, bool round_first) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < size; ++i) {
    const float x = Number::load(from[i]);
    squares += x * x;
  }
  const float factor = 1.0f / std::sqrt(squares / float(size) + epsilon);
  if (round_first) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i)
      to[i] = Number::store(Number::load(Number::store(Number::load(from[i]) * factor)) * weight[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i)
      to[i] = Number::store(Number::load(from[i]) * factor * weight[i]);
  }
}

template <class Number>
void norm(const SloserveNorm& call, int num_threads) {
  using Stored = typename Number::Stored;
  const Stored* from = static_cast<const Stored*>(call.from);
  Stored* to = static_cast<Stored*>(call.to);
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && call.rows * call.size > kTogether)
  for (int64_t row = 0; row < call.rows; ++row)
    norm_row<Number>(from + row * call.from_row, to + row * call.size, call.weight, call.size,
                     call.epsilon, call.round_first != 0);
}

template <class Number>
inline void turn_head(typename Number::Stored* head, const typename Number::Stored* cosine,
                      const typename Number::Stored* sine, int64_t turned) {
  const int64_t half = turned / 2;
  float turned_a[kMaxHead / 2], turned_b[kMaxHead / 2];
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = Number::load(head[i]), b = Number::load(head[half + i]);
    turned_a[i] = a * Number::load(cosine[i]) - b * Number::load(sine[i]);
    turned_b[i] = b * Number::load(cosine[half + i]) + a * Number::load(sine[half + i]);
  }
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    head[i] = Number::store(turned_a[i]);
    head[half + i] = Number::store(turned_b[i]);
  }
}

template <class Number>
void turn(const SloserveTurn& call, int num_threads) {
  using Stored = typename Number::Stored;
  const int64_t num_heads = call.num_queries + call.num_keys;
  const Stored* cosine = static_cast<const Stored*>(call.cosine);
  const Stored* sine = static_cast<const Stored*>(call.sine);
#pragma omp parallel for num_threads(num_threads) \
    if (num_threads > 1 && call.tokens * num_heads * call.size > kTogether)
  for (int64_t token = 0; token < call.tokens; ++token) {
    Stored* head = static_cast<Stored*>(call.heads) + token * call.token_stride;
    for (int64_t h = 0; h < num_heads; ++h, head += call.size) {
      const float* weight = h < call.num_queries ? call.query_weight : call.key_weight;
      if (weight)
        norm_row<Number>(head, head, weight, call.size, call.epsilon, call.round_first != 0);
      if (call.turned)
        turn_head<Number>(head, cosine + token * call.turned, sine + token * call.turned,
                          call.turned);
    }
  }
}

template <class Number>
void gate(const SloserveGate& call, int num_threads) {
  using Stored = typename Number::Stored;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && call.rows * call.size > kTogether)
  for (int64_t row = 0; row < call.rows; ++row) {
    const Stored* gates = static_cast<const Stored*>(call.from) + row * 2 * call.size;
    const Stored* ups = gates + call.size;
    Stored* to = static_cast<Stored*>(call.to) + row * call.size;
    if (call.gelu) {
#pragma omp simd
      for (int64_t i = 0; i < call.size; ++i) {
        const float x = Number::load(gates[i]);
        const float bent = 1.5957691216057308f * (x + 0.044715f * x * x * x);
        to[i] = Number::store(x / (1.0f + exp_of(-bent)) * Number::load(ups[i]));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < call.size; ++i) {
        const float x = Number::load(gates[i]);
        to[i] = Number::store(x / (1.0f + exp_of(-x)) * Number::load(ups[i]));
      }
    }
  }
}

}  // namespace

extern "C" {

int64_t sloserve_longest_turned_head() { return kMaxHead; }

void sloserve_norm_float32(const SloserveNorm* call, int num_threads) {
  norm<Float32>(*call, num_threads);
}
void sloserve_norm_bfloat16(const SloserveNorm* call, int num_threads) {
  norm<BFloat16>(*call, num_threads);
}
void sloserve_turn_float32(const SloserveTurn* call, int num_threads) {
  turn<Float32>(*call, num_threads);
}
void sloserve_turn_bfloat16(const SloserveTurn* call, int num_threads) {
  turn<BFloat16>(*call, num_threads);
}
void sloserve_gate_float32(const SloserveGate* call, int num_threads) {
  gate<Float32>(*call, num_threads);
}
void sloserve_gate_bfloat16(const SloserveGate* call, int num_threads) {
  gate<BFloat16>(*call, num_threads);
}
}
