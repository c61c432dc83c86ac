// Attention of one step over paged keys and values, on CPU: see `compiled.py`.
//
// A row is a run of tokens of one request after `context` tokens in the cache. Its keys are cut
// into parts of kPart at fixed positions, every part is computed by itself and the parts are
// merged in order. What a token gets therefore depends neither on the other rows nor on how many
// threads there are.
//
//   score(i, j) = cap(scaling * q(i) . k(j))   for 0 <= i - j < window
//   out(i) = sum_j exp(score(i, j)) v(j) / (sum_j exp(score(i, j)) + exp(sink))

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int kPart = 256;    // keys of a part
constexpr int kQueries = 16;  // queries (tokens x heads of one key head) that share a part
constexpr int kMaxSize = 512; // of a head
constexpr int kTogether = 60000;  // multiplications that are worth waking other threads
constexpr float kNever = -std::numeric_limits<float>::infinity();

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t Ints __attribute__((vector_size(W * 4)));
typedef uint32_t Words __attribute__((vector_size(W * 4)));
typedef uint16_t Halves __attribute__((vector_size(W * 2)));

// --- numbers as they lie in memory ---------------------------------------------------------------

struct Float32 {
  using Stored = float;
  static inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
};

struct BFloat16 {
  using Stored = uint16_t;
  static inline Vec load(const uint16_t* from) {
    Halves h;
    std::memcpy(&h, from, sizeof h);
    return (Vec)(__builtin_convertvector(h, Words) << 16);
  }
  static inline void store(uint16_t* to, Vec v) {
    Words w = (Words)v;
    w += 0x7fff + ((w >> 16) & 1);  // round to nearest, ties to even
    Halves h = __builtin_convertvector(w >> 16, Halves);
    std::memcpy(to, &h, sizeof h);
  }
};

// `count` numbers (fewer than W) and zeros behind them
template <class Number>
inline Vec load_some(const typename Number::Stored* from, int count) {
  typename Number::Stored some[W] = {};
  std::memcpy(some, from, count * sizeof *from);
  return Number::load(some);
}

// --- vectors -------------------------------------------------------------------------------------

inline Vec all(float x) { return x - Vec{}; }

constexpr int lane(int i, int step, bool second) {
  const int group = i / (2 * step) * (2 * step), at = i % (2 * step);
  const int from = second ? step : 0;
  return at < step ? group + from + at : W + group + from + at - step;
}

// lanes of a and b by turns, `step` at a time: their first and second halves added up
template <int step, int... I>
inline Vec fold(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, lane(I, step, false)...) +
         __builtin_shufflevector(a, b, lane(I, step, true)...);
#else
  return __builtin_shuffle(a, b, Ints{lane(I, step, false)...}) +
         __builtin_shuffle(a, b, Ints{lane(I, step, true)...});
#endif
}

// lane i: the sum of vector i
template <int step = 1>
inline Vec sums(const Vec* of) {
  if constexpr (step == W) {
    return *of;
  } else {
    Vec half[W / 2 / step];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2 / step; ++i)
      half[i] = fold<step>(of[2 * i], of[2 * i + 1], std::make_integer_sequence<int, W>{});
    return sums<2 * step>(half);
  }
}

inline float largest(Vec v) {
  float most = v[0];
  for (int i = 1; i < W; ++i) most = std::max(most, v[i]);
  return most;
}

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < W; ++i) total += v[i];
  return total;
}

// exp within 2 units in the last place; 0 below -87
inline Vec exp_of(Vec x) {
  const Vec low = all(-87.0f), high = all(88.0f);
  Vec y = x < low ? low : x;
  y = y > high ? high : y;
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vec n = (y * 1.44269504088896341f + magic) - magic;
  const Vec r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return x < low ? Vec{} : p * (Vec)power;
}

inline Vec capped(Vec score, float cap) {
  const Vec e = exp_of(score * (2.0f / cap));
  return cap - (2.0f * cap) / (e + 1.0f);  // cap * tanh(score / cap)
}

}  // namespace

// --- the step ------------------------------------------------------------------------------------

extern "C" {

// Rows of a step: int64 arrays as in `batch.Tables`, and where the tokens' keys and values go.
struct SloserveStep {
  int64_t num_rows, num_tokens, num_padded, block_size;
  const int64_t *begins, *contexts, *page_begins, *pages, *slots;
};

// One layer of the cache [blocks, block_size, kv_heads, size], and what it asks of attention.
struct SloserveLayer {
  void *keys, *values;
  int64_t heads, kv_heads, key_size, value_size;
  int64_t window;       // 0: none
  const float* sinks;   // (heads,) or null
  float scaling, softcap;  // softcap 0: none
};

// query (heads, P, size), key and value (kv_heads, P, size): strides in numbers, the last is 1.
// out (P, heads, value_size), contiguous.
struct SloserveCall {
  const void *query, *key, *value;
  void* out;
  int64_t query_head, query_token, key_head, key_token, value_head, value_token;
};
}

namespace {

struct Task {
  int64_t row, head;
  int64_t first_query, num_queries;  // queries of a row: token * group + head in the group
  int64_t first_part, end_part;
  int64_t partial;  // where in `partials_` the parts go one by one; -1: merged at once
};

// The softmax of one query over some keys: largest score, sum of exp(score - most).
struct Softmax {
  float most, total;
};

template <class Number>
class Attention {
 public:
  using Stored = typename Number::Stored;

  Attention(const SloserveStep& step, const SloserveLayer& layer, const SloserveCall& call)
      : step_(step),
        layer_(layer),
        call_(call),
        group_(layer.heads / layer.kv_heads),
        width_((layer.value_size + W - 1) / W * W) {}

  void run(int num_threads) {
    plan(num_threads);
    const int64_t num_tasks = tasks_.size(), num_merges = merges_.size();
    const int64_t num_tokens = step_.num_tokens;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && work_ > kTogether)
    {
#pragma omp for schedule(static)
      for (int64_t token = 0; token < num_tokens; ++token) write(token);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < num_tasks; ++i) attend(tasks_[i]);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < num_merges; ++i) merge(merges_[i]);
    }
    const int64_t size = layer_.heads * layer_.value_size;
    std::memset(static_cast<Stored*>(call_.out) + num_tokens * size, 0,
                (step_.num_padded - num_tokens) * size * sizeof(Stored));
  }

 private:
  // What to do, in tasks for one thread each. Long contexts are cut up when tasks are few.
  void plan(int num_threads) {
    int64_t num_whole = 0;
    for (int64_t row = 0; row < step_.num_rows; ++row)
      num_whole += (queries_of(row) + kQueries - 1) / kQueries * layer_.kv_heads;
    const bool cut = num_threads > 1 && num_whole < 4 * num_threads;
    tasks_.reserve(num_whole);
    int64_t num_floats = 0;
    for (int64_t row = 0; row < step_.num_rows; ++row) {
      for (int64_t head = 0; head < layer_.kv_heads; ++head) {
        for (int64_t query = 0; query < queries_of(row); query += kQueries) {
          Task task{row, head, query, std::min<int64_t>(kQueries, queries_of(row) - query), 0, 0, -1};
          const int64_t low = first_key(position(task, 0));
          const int64_t high = position(task, task.num_queries - 1) + 1;
          task.first_part = low / kPart;
          task.end_part = (high - 1) / kPart + 1;
          work_ += (high - low) * task.num_queries * layer_.key_size;
          if (!cut || task.end_part - task.first_part == 1) {
            tasks_.push_back(task);
            continue;
          }
          task.partial = num_floats;
          merges_.push_back(task);
          for (int64_t part = task.first_part; part < task.end_part; ++part) {
            Task one = task;
            one.first_part = part, one.end_part = part + 1;
            one.partial = num_floats;
            tasks_.push_back(one);
            num_floats += partial_size(task);
          }
        }
      }
    }
    partials_.resize(num_floats);
  }

  int64_t queries_of(int64_t row) const {
    return (step_.begins[row + 1] - step_.begins[row]) * group_;
  }

  // A part's floats per query: its values' sums, then the softmax's two numbers.
  int64_t partial_size(const Task& task) const { return task.num_queries * (width_ + 2); }

  int64_t position(const Task& task, int64_t query) const {
    return step_.contexts[task.row] + (task.first_query + query) / group_;
  }

  int64_t first_key(int64_t position) const {
    return layer_.window ? std::max<int64_t>(0, position - layer_.window + 1) : 0;
  }

  void write(int64_t token) const {
    copy(layer_.keys, layer_.key_size, call_.key, call_.key_head, call_.key_token, token);
    copy(layer_.values, layer_.value_size, call_.value, call_.value_head, call_.value_token, token);
  }

  void copy(void* cache, int64_t size, const void* from, int64_t head_stride, int64_t token_stride,
            int64_t token) const {
    Stored* to = static_cast<Stored*>(cache) + step_.slots[token] * layer_.kv_heads * size;
    const Stored* own = static_cast<const Stored*>(from) + token * token_stride;
    for (int64_t head = 0; head < layer_.kv_heads; ++head)
      std::memcpy(to + head * size, own + head * head_stride, size * sizeof(Stored));
  }

  void attend(const Task& task) {
    alignas(64) float query[kQueries * kMaxSize];
    alignas(64) float out[kQueries * kMaxSize];
    alignas(64) float values[kQueries * kMaxSize];
    load_queries(task, query);
    Softmax whole[kQueries], part[kQueries];
    for (int64_t i = task.first_part; i < task.end_part; ++i) {
      attend_part(task, i, query, part, values);
      if (task.partial >= 0) {
        float* to = partials_.data() + task.partial;
        const int64_t num_values = task.num_queries * width_;
        std::memcpy(to, values, num_values * sizeof(float));
        std::memcpy(to + num_values, part, task.num_queries * sizeof(Softmax));
        return;
      }
      add(task.num_queries, i == task.first_part, whole, out, part, values);
    }
    finish(task, whole, out);
  }

  void merge(const Task& task) {
    alignas(64) float out[kQueries * kMaxSize];
    Softmax whole[kQueries], part[kQueries];
    const int64_t num_values = task.num_queries * width_;
    for (int64_t i = task.first_part; i < task.end_part; ++i) {
      const float* from =
          partials_.data() + task.partial + (i - task.first_part) * partial_size(task);
      std::memcpy(part, from + num_values, task.num_queries * sizeof(Softmax));
      add(task.num_queries, i == task.first_part, whole, out, part, from);
    }
    finish(task, whole, out);
  }

  // (queries, keys up to whole vectors) float32, scaled
  void load_queries(const Task& task, float* query) const {
    const int64_t size = layer_.key_size, width = (size + W - 1) / W * W;
    for (int64_t i = 0; i < task.num_queries; ++i) {
      const int64_t at = task.first_query + i;
      const Stored* from = static_cast<const Stored*>(call_.query) +
                           (task.head * group_ + at % group_) * call_.query_head +
                           (step_.begins[task.row] + at / group_) * call_.query_token;
      for (int64_t d = 0; d < size; d += W) {
        const Vec v = d + W <= size ? Number::load(from + d)
                                    : load_some<Number>(from + d, int(size - d));
        Float32::store(query + i * width + d, v * layer_.scaling);
      }
    }
  }

  // Softmax and values (queries, width_) of the keys of one part.
  void attend_part(const Task& task, int64_t part, const float* query, Softmax* softmax,
                   float* values) const {
    alignas(64) float weights[kQueries * kPart];
    const Stored *key_of[kPart], *value_of[kPart];
    const int64_t base = part * kPart;
    const int64_t begin = std::max(base, first_key(position(task, 0))) / W * W;
    const int64_t end = std::min(base + kPart, position(task, task.num_queries - 1) + 1);
    const int64_t end_vector = (end + W - 1) / W * W;
    find(task, begin, end, end_vector, key_of, value_of);
    score(task, begin, end_vector, query, key_of, weights);
    for (int64_t i = 0; i < task.num_queries; ++i)
      softmax[i] = weigh(weights + i * kPart, end_vector - begin);
    const int64_t size = layer_.value_size;
    for (int64_t i = 0; i < task.num_queries; i += 4) {
      const int64_t left = task.num_queries - i;
      const float* w = weights + i * kPart;
      float* to = values + i * width_;
      if (left >= 4) {
        add_values<4>(w, end - begin, value_of, size, to);
      } else if (left == 3) {
        add_values<3>(w, end - begin, value_of, size, to);
      } else if (left == 2) {
        add_values<2>(w, end - begin, value_of, size, to);
      } else {
        add_values<1>(w, end - begin, value_of, size, to);
      }
    }
  }

  // Where keys and values [begin, end) lie; behind them, up to `end_vector`, the last one again.
  void find(const Task& task, int64_t begin, int64_t end, int64_t end_vector,
            const Stored** key_of, const Stored** value_of) const {
    const int64_t* pages = step_.pages + step_.page_begins[task.row];
    const int64_t key_stride = layer_.kv_heads * layer_.key_size;
    const int64_t value_stride = layer_.kv_heads * layer_.value_size;
    const Stored* keys = static_cast<const Stored*>(layer_.keys) + task.head * layer_.key_size;
    const Stored* values =
        static_cast<const Stored*>(layer_.values) + task.head * layer_.value_size;
    for (int64_t key = begin; key < end;) {
      const int64_t page = key / step_.block_size;
      const int64_t page_end = std::min(end, (page + 1) * step_.block_size);
      int64_t slot = pages[page] * step_.block_size + key % step_.block_size;
      for (; key < page_end; ++key, ++slot) {
        key_of[key - begin] = keys + slot * key_stride;
        value_of[key - begin] = values + slot * value_stride;
      }
    }
    for (int64_t key = end; key < end_vector; ++key) {
      key_of[key - begin] = key_of[end - 1 - begin];
      value_of[key - begin] = value_of[end - 1 - begin];
    }
  }

  // weights (queries, kPart): the scores of keys [begin, end), -inf where a key is not seen.
  void score(const Task& task, int64_t begin, int64_t end, const float* query,
             const Stored* const* key_of, float* weights) const {
    const int64_t size = layer_.key_size, width = (size + W - 1) / W * W;
    // Several queries and 16-bit keys: the keys of a vector are widened once for all of them.
    const bool widen = sizeof(Stored) < sizeof(float) && task.num_queries > 1;
    alignas(64) float wide[W * kMaxSize];
    const float* wide_of[W];
    for (int i = 0; i < W; ++i) wide_of[i] = wide + i * width;
    for (int64_t key = begin; key < end; key += W) {
      if (widen) {
        for (int i = 0; i < W; ++i) {
          const Stored* from = key_of[key - begin + i];
          for (int64_t d = 0; d < size; d += W)
            Float32::store(wide + i * width + d,
                           d + W <= size ? Number::load(from + d)
                                         : load_some<Number>(from + d, int(size - d)));
        }
      }
      for (int64_t i = 0; i < task.num_queries; ++i) {
        float* to = weights + i * kPart + key - begin;
        const int64_t last = position(task, i), first = first_key(last);
        if (key > last || key + W <= first) {
          Float32::store(to, all(kNever));
          continue;
        }
        Vec score = widen ? products<Float32>(query + i * width, wide_of, width)
                          : products<Number>(query + i * width, key_of + (key - begin), size);
        if (layer_.softcap > 0) score = capped(score, layer_.softcap);
        if (key < first || key + W - 1 > last) {
          for (int j = 0; j < W; ++j)
            if (key + j < first || key + j > last) score[j] = kNever;
        }
        Float32::store(to, score);
      }
    }
  }

  // lane i: the query's product with key i
  template <class Kind>
  static inline Vec products(const float* query, const typename Kind::Stored* const* keys,
                             int64_t size) {
    Vec sum_of[W] = {};
    int64_t d = 0;
    for (; d + W <= size; d += W) {
      const Vec q = Float32::load(query + d);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) sum_of[i] += q * Kind::load(keys[i] + d);
    }
    if (d < size) {
      const Vec q = Float32::load(query + d);
      for (int i = 0; i < W; ++i)
        sum_of[i] += q * load_some<Kind>(keys[i] + d, int(size - d));
    }
    return sums(sum_of);
  }

  // Scores become exp(score - largest), in place.
  static Softmax weigh(float* scores, int64_t count) {
    Vec most = all(kNever);
    for (int64_t i = 0; i < count; i += W) {
      const Vec v = Float32::load(scores + i);
      most = v > most ? v : most;
    }
    Softmax softmax{largest(most), 0};
    if (softmax.most == kNever) {
      std::memset(scores, 0, count * sizeof(float));
      return softmax;
    }
    Vec total = {};
    for (int64_t i = 0; i < count; i += W) {
      const Vec v = exp_of(Float32::load(scores + i) - softmax.most);
      total += v;
      Float32::store(scores + i, v);
    }
    softmax.total = sum(total);
    return softmax;
  }

  // to (queries, width_) = weights (queries, kPart) . values (count, size)
  template <int queries>
  void add_values(const float* weights, int64_t count, const Stored* const* value_of, int64_t size,
                  float* to) const {
    int64_t d = 0;
    for (; d + 4 * W <= size; d += 4 * W) add_columns<queries, 4>(weights, count, value_of, d, to);
    for (; d + W <= size; d += W) add_columns<queries, 1>(weights, count, value_of, d, to);
    if (d == size) return;
    Vec sum_of[queries] = {};
    for (int64_t key = 0; key < count; ++key) {
      const Vec value = load_some<Number>(value_of[key] + d, int(size - d));
      for (int i = 0; i < queries; ++i) sum_of[i] += weights[i * kPart + key] * value;
    }
    for (int i = 0; i < queries; ++i) Float32::store(to + i * width_ + d, sum_of[i]);
  }

  template <int queries, int vectors>
  inline void add_columns(const float* weights, int64_t count, const Stored* const* value_of,
                          int64_t d, float* to) const {
    Vec sum_of[queries][vectors] = {};
    for (int64_t key = 0; key < count; ++key) {
      Vec value[vectors];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) value[j] = Number::load(value_of[key] + d + j * W);
#pragma GCC unroll 4
      for (int i = 0; i < queries; ++i) {
        const Vec weight = all(weights[i * kPart + key]);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum_of[i][j] += weight * value[j];
      }
    }
    for (int i = 0; i < queries; ++i)
      for (int j = 0; j < vectors; ++j) Float32::store(to + i * width_ + d + j * W, sum_of[i][j]);
  }

  // The next part into the whole. Not inlined: both callers must round alike.
  __attribute__((noinline)) void add(int64_t num_queries, bool first, Softmax* whole, float* out,
                                     const Softmax* part, const float* values) const {
    if (first) {
      std::copy_n(part, num_queries, whole);
      std::copy_n(values, num_queries * width_, out);
      return;
    }
    for (int64_t i = 0; i < num_queries; ++i) {
      const float most = std::max(whole[i].most, part[i].most);
      if (most == kNever) continue;
      const float own = std::exp(whole[i].most - most), its = std::exp(part[i].most - most);
      whole[i].most = most;
      whole[i].total = whole[i].total * own + part[i].total * its;
      for (int64_t d = 0; d < width_; d += W) {
        const Vec sum = Float32::load(out + i * width_ + d) * own +
                        Float32::load(values + i * width_ + d) * its;
        Float32::store(out + i * width_ + d, sum);
      }
    }
  }

  void finish(const Task& task, const Softmax* whole, const float* values) const {
    const int64_t size = layer_.value_size;
    for (int64_t i = 0; i < task.num_queries; ++i) {
      const int64_t at = task.first_query + i, head = task.head * group_ + at % group_;
      float factor = 1 / whole[i].total;
      if (layer_.sinks) {
        const float sink = layer_.sinks[head], most = std::max(whole[i].most, sink);
        const float own = std::exp(whole[i].most - most);
        factor = own / (whole[i].total * own + std::exp(sink - most));
      }
      Stored* out = static_cast<Stored*>(call_.out) +
                    ((step_.begins[task.row] + at / group_) * layer_.heads + head) * size;
      for (int64_t d = 0; d < size; d += W) {
        const Vec v = Float32::load(values + i * width_ + d) * factor;
        if (d + W <= size) {
          Number::store(out + d, v);
        } else {
          Stored some[W];
          Number::store(some, v);
          std::memcpy(out + d, some, (size - d) * sizeof(Stored));
        }
      }
    }
  }

  const SloserveStep& step_;
  const SloserveLayer& layer_;
  const SloserveCall& call_;
  const int64_t group_;  // query heads of one key head
  const int64_t width_;  // value_size, up to whole vectors
  int64_t work_ = 0;     // multiplications, about
  std::vector<Task> tasks_, merges_;
  std::vector<float> partials_;
};

}  // namespace

extern "C" {

int64_t sloserve_largest_head() { return kMaxSize; }

void sloserve_attend_float32(const SloserveStep* step, const SloserveLayer* layer,
                             const SloserveCall* call, int num_threads) {
  Attention<Float32>(*step, *layer, *call).run(num_threads);
}

void sloserve_attend_bfloat16(const SloserveStep* step, const SloserveLayer* layer,
                              const SloserveCall* call, int num_threads) {
  Attention<BFloat16>(*step, *layer, *call).run(num_threads);
}
}
