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
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int kPart = 256;    // keys of a part
constexpr int kQueries = 16;  // queries of a task, over all its heads
constexpr int kTile = 16;     // keys whose values are added up for one head after the other
constexpr int kMaxSize = 512; // of a head
constexpr int kTogether = 60000;  // multiplications that are worth waking other threads
constexpr float kNever = -std::numeric_limits<float>::infinity();

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t Ints __attribute__((vector_size(W * 4)));
typedef uint32_t Words __attribute__((vector_size(W * 4)));
typedef uint16_t Halves __attribute__((vector_size(W * 2)));

// --- numbers as they lie in memory ---------------------------------------------------------------

//
// Two vectors at once may come in another order than in memory, as long as `load2` and `store2`
// agree: queries, keys and values are all read by the same rule (`steps of 2W, then of W`).

struct Float32 {
  using Stored = float;
  static inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
  static inline void load2(const float* from, Vec& a, Vec& b) {
    a = load(from), b = load(from + W);
  }
  static inline void store2(float* to, Vec a, Vec b) { store(to, a), store(to + W, b); }
};

struct BFloat16 {
  using Stored = uint16_t;
  static inline Vec load(const uint16_t* from) {
    Halves h;
    std::memcpy(&h, from, sizeof h);
    return (Vec)(__builtin_convertvector(h, Words) << 16);
  }
  static inline Words rounded(Vec v) {  // to the nearest, ties to even; in the upper halves
    const Words w = (Words)v;
    return w + 0x7fff + ((w >> 16) & 1);
  }
  static inline void store(uint16_t* to, Vec v) {
    const Halves h = __builtin_convertvector(rounded(v) >> 16, Halves);
    std::memcpy(to, &h, sizeof h);
  }
  static inline void load2(const uint16_t* from, Vec& even, Vec& odd) {
    Words w;
    std::memcpy(&w, from, sizeof w);
    even = (Vec)(w << 16), odd = (Vec)(w & 0xffff0000);
  }
  static inline void store2(uint16_t* to, Vec even, Vec odd) {
    const Words w = rounded(even) >> 16 | (rounded(odd) & 0xffff0000);
    std::memcpy(to, &w, sizeof w);
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

// Queries of one row that are attended together, for one key head or several that lie side by side
// (memory is then read as it lies). Queries of a key head: token * group + head in the group.
struct Task {
  int64_t row, first_head, num_heads;
  int64_t first_query, num_queries;  // of each head
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
    for (int64_t row = 0; row < step_.num_rows; ++row) {
      const int64_t queries = queries_of(row), heads = heads_together(queries);
      num_whole += (queries + kQueries - 1) / kQueries * ((layer_.kv_heads + heads - 1) / heads);
    }
    cut_ = num_threads > 1 && num_whole < 4 * num_threads;
    tasks_.reserve(num_whole);
    for (int64_t row = 0; row < step_.num_rows; ++row) {
      const int64_t queries = queries_of(row), heads = heads_together(queries);
      for (int64_t head = 0; head < layer_.kv_heads; head += heads)
        for (int64_t query = 0; query < queries; query += kQueries)
          add_task({row, head, std::min(heads, layer_.kv_heads - head), query,
                    std::min<int64_t>(kQueries, queries - query), 0, 0, -1});
    }
    partials_.resize(num_floats_);
  }

  void add_task(Task task) {
    const int64_t low = first_key(position(task, 0));
    const int64_t high = position(task, task.num_queries - 1) + 1;
    task.first_part = low / kPart;
    task.end_part = (high - 1) / kPart + 1;
    work_ += (high - low) * rows_of(task) * layer_.key_size;
    if (!cut_ || task.end_part - task.first_part == 1) {
      tasks_.push_back(task);
      return;
    }
    task.partial = num_floats_;
    merges_.push_back(task);
    for (int64_t part = task.first_part; part < task.end_part; ++part) {
      Task one = task;
      one.first_part = part, one.end_part = part + 1;
      one.partial = num_floats_;
      tasks_.push_back(one);
      num_floats_ += partial_size(task);
    }
  }

  // Heads in a task, for so many queries a head.
  static int64_t heads_together(int64_t queries) {
    return std::max<int64_t>(1, kQueries / queries);
  }

  static int64_t rows_of(const Task& task) { return task.num_heads * task.num_queries; }

  int64_t queries_of(int64_t row) const {
    return (step_.begins[row + 1] - step_.begins[row]) * group_;
  }

  // A part's floats: the sums of values, then the two numbers of the softmax, for every query.
  int64_t partial_size(const Task& task) const { return rows_of(task) * (width_ + 2); }

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
    const Stored* query_of[kQueries];
    load_queries(task, query_of, query);
    Softmax whole[kQueries], part[kQueries];
    for (int64_t i = task.first_part; i < task.end_part; ++i) {
      attend_part(task, i, query_of, query, part, values);
      if (task.partial >= 0) {
        float* to = partials_.data() + task.partial;
        const int64_t num_values = rows_of(task) * width_;
        std::memcpy(to, values, num_values * sizeof(float));
        std::memcpy(to + num_values, part, rows_of(task) * sizeof(Softmax));
        return;
      }
      add(rows_of(task), i == task.first_part, whole, out, part, values);
    }
    finish(task, whole, out);
  }

  void merge(const Task& task) {
    alignas(64) float out[kQueries * kMaxSize];
    Softmax whole[kQueries], part[kQueries];
    const int64_t num_values = rows_of(task) * width_;
    for (int64_t i = task.first_part; i < task.end_part; ++i) {
      const float* from =
          partials_.data() + task.partial + (i - task.first_part) * partial_size(task);
      std::memcpy(part, from + num_values, rows_of(task) * sizeof(Softmax));
      add(rows_of(task), i == task.first_part, whole, out, part, from);
    }
    finish(task, whole, out);
  }

  // Queries (heads, queries) where they lie, and as float32 of key_size up to whole vectors.
  void load_queries(const Task& task, const Stored** query_of, float* query) const {
    for (int64_t head = task.first_head; head < task.first_head + task.num_heads; ++head) {
      for (int64_t i = 0; i < task.num_queries; ++i) {
        const int64_t at = task.first_query + i;
        *query_of = static_cast<const Stored*>(call_.query) +
                    (head * group_ + at % group_) * call_.query_head +
                    (step_.begins[task.row] + at / group_) * call_.query_token;
        widen(*query_of++, query);
        query += key_width();
      }
    }
  }

  int64_t key_width() const { return (layer_.key_size + W - 1) / W * W; }

  // key_size numbers as float32
  void widen(const Stored* from, float* to) const {
    const int64_t size = layer_.key_size;
    int64_t d = 0;
    for (; d + 2 * W <= size; d += 2 * W) {
      Vec a, b;
      Number::load2(from + d, a, b);
      Float32::store2(to + d, a, b);
    }
    for (; d < size; d += W) Float32::store(to + d, load(from + d, size - d));
  }

  // up to a vector of numbers, as many as are left
  static inline Vec load(const Stored* from, int64_t left) {
    return left >= W ? Number::load(from) : load_some<Number>(from, int(left));
  }

  // Softmax (heads, queries) and values (heads, queries, width_) of the keys of one part.
  void attend_part(const Task& task, int64_t part, const Stored* const* query_of,
                   const float* query, Softmax* softmax, float* values) const {
    alignas(64) float weights[kQueries * kPart];
    const Stored *key_of[kPart], *value_of[kPart];
    const int64_t base = part * kPart;
    const int64_t begin = std::max(base, first_key(position(task, 0))) / W * W;
    const int64_t end = std::min(base + kPart, position(task, task.num_queries - 1) + 1);
    const int64_t end_vector = (end + W - 1) / W * W;
    find(task, begin, end, end_vector, key_of, value_of);
    for (int64_t key = begin; key < end_vector; key += W)
      for (int64_t head = 0; head < task.num_heads; ++head)
        score(task, head, key, query_of, query, key_of + (key - begin), weights + (key - begin));
    for (int64_t i = 0; i < rows_of(task); ++i)
      softmax[i] = weigh(weights + i * kPart, end_vector - begin);
    const int64_t count = end - begin, tile = task.num_heads > 1 ? kTile : count;
    for (int64_t key = 0; key < count; key += tile)
      for (int64_t head = 0; head < task.num_heads; ++head)
        add_values(task, head, weights + key, std::min(tile, count - key), value_of + key,
                   key == 0, values);
  }

  // Where keys and values [begin, end) lie; behind them, up to `end_vector`, the last one again.
  void find(const Task& task, int64_t begin, int64_t end, int64_t end_vector,
            const Stored** key_of, const Stored** value_of) const {
    const int64_t* pages = step_.pages + step_.page_begins[task.row];
    const int64_t key_stride = layer_.kv_heads * layer_.key_size;
    const int64_t value_stride = layer_.kv_heads * layer_.value_size;
    const Stored* keys =
        static_cast<const Stored*>(layer_.keys) + task.first_head * layer_.key_size;
    const Stored* values =
        static_cast<const Stored*>(layer_.values) + task.first_head * layer_.value_size;
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

  // One head's scores of the vector of keys from `key` on, into weights (heads, queries, kPart);
  // -inf where a key is not seen.
  void score(const Task& task, int64_t head, int64_t key, const Stored* const* query_of,
             const float* query, const Stored* const* key_of, float* weights) const {
    const int64_t width = key_width(), offset = head * layer_.key_size;
    const int64_t first_row = head * task.num_queries;
    // Several queries and 16-bit keys: the keys are widened once for all of them.
    const bool wide = kWiden && task.num_queries > 2;
    alignas(64) float wide_keys[W * kMaxSize];
    const float* wide_of[W];
    if (wide) {
      for (int i = 0; i < W; ++i) {
        wide_of[i] = wide_keys + i * width;
        widen(key_of[i] + offset, wide_keys + i * width);
      }
    }
    for (int64_t i = 0; i < task.num_queries; ++i) {
      float* to = weights + (first_row + i) * kPart;
      const int64_t last = position(task, i), first = first_key(last);
      if (key > last || key + W <= first) {
        Float32::store(to, all(kNever));
        continue;
      }
      const float* own = query + (first_row + i) * width;
      Vec score = wide ? products<Float32>(own, own, wide_of, 0, width)
                       : products<Number>(query_of[first_row + i], own, key_of, offset,
                                          layer_.key_size);
      score *= layer_.scaling;
      if (layer_.softcap > 0) score = capped(score, layer_.softcap);
      if (key < first || key + W - 1 > last) {
        for (int j = 0; j < W; ++j)
          if (key + j < first || key + j > last) score[j] = kNever;
      }
      Float32::store(to, score);
    }
  }

#if defined(__AVX512BF16__)
  static constexpr bool kWiden = false;
#else
  static constexpr bool kWiden = sizeof(Stored) < sizeof(float);
#endif

  // lane i: the query's product with key i. The query is there as stored and as float32.
  template <class Kind>
  static inline Vec products(const typename Kind::Stored* stored, const float* query,
                             const typename Kind::Stored* const* keys, int64_t offset,
                             int64_t size) {
    Vec total[W] = {};
    int64_t d = 0;
    for (; d + 2 * W <= size; d += 2 * W) {
#if defined(__AVX512BF16__)
      if constexpr (std::is_same_v<Kind, BFloat16>) {
        const __m512bh q = (__m512bh)_mm512_loadu_si512(stored + d);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          const __m512bh k = (__m512bh)_mm512_loadu_si512(keys[i] + offset + d);
          total[i] = (Vec)_mm512_dpbf16_ps((__m512)total[i], k, q);
        }
        continue;
      }
#endif
      Vec q, r;
      Float32::load2(query + d, q, r);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        Vec k, l;
        Kind::load2(keys[i] + offset + d, k, l);
        total[i] += q * k;
        total[i] += r * l;
      }
    }
    for (; d < size; d += W) {
      const Vec q = Float32::load(query + d);
      for (int i = 0; i < W; ++i) {
        const auto* from = keys[i] + offset + d;
        total[i] += q * (size - d >= W ? Kind::load(from) : load_some<Kind>(from, int(size - d)));
      }
    }
    (void)stored;
    return sums(total);
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

  // One head's values of `count` keys, weighted, onto to (heads, queries, width_).
  void add_values(const Task& task, int64_t head, const float* weights, int64_t count,
                  const Stored* const* value_of, bool first, float* to) const {
    weights += head * task.num_queries * kPart;
    to += head * task.num_queries * width_;
    const int64_t offset = head * layer_.value_size;
    for (int64_t i = 0; i < task.num_queries; i += 4) {
      const Sum sum{weights + i * kPart, count, value_of, offset, first, to + i * width_};
      switch (std::min<int64_t>(4, task.num_queries - i)) {
        case 4: add_rows<4>(sum); break;
        case 3: add_rows<3>(sum); break;
        case 2: add_rows<2>(sum); break;
        default: add_rows<1>(sum);
      }
    }
  }

  struct Sum {
    const float* weights;
    int64_t count;
    const Stored* const* value_of;
    int64_t offset;
    bool first;
    float* to;
  };

  template <int queries>
  void add_rows(const Sum& sum) const {
    const int64_t size = layer_.value_size;
    int64_t d = 0;
    for (; d + 4 * W <= size; d += 4 * W) add_columns<queries, 4>(sum, d, W);
    for (; d + 2 * W <= size; d += 2 * W) add_columns<queries, 2>(sum, d, W);
    for (; d < size; d += W) add_columns<queries, 1>(sum, d, size - d);
  }

  template <int queries, int vectors>
  inline void add_columns(const Sum& sum, int64_t d, int64_t left) const {
    Vec total[queries][vectors] = {};
    if (!sum.first)
      for (int i = 0; i < queries; ++i)
        for (int j = 0; j < vectors; ++j)
          total[i][j] = Float32::load(sum.to + i * width_ + d + j * W);
    for (int64_t key = 0; key < sum.count; ++key) {
      const Stored* from = sum.value_of[key] + sum.offset + d;
      Vec value[vectors];
      if constexpr (vectors == 1) {
        value[0] = load(from, left);
      } else {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j += 2) Number::load2(from + j * W, value[j], value[j + 1]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < queries; ++i) {
        const Vec weight = all(sum.weights[i * kPart + key]);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) total[i][j] += weight * value[j];
      }
    }
    for (int i = 0; i < queries; ++i)
      for (int j = 0; j < vectors; ++j)
        Float32::store(sum.to + i * width_ + d + j * W, total[i][j]);
  }

  // The next part into the whole. Not inlined: both callers must round alike.
  __attribute__((noinline)) void add(int64_t num_rows, bool first, Softmax* whole, float* out,
                                     const Softmax* part, const float* values) const {
    if (first) {
      std::copy_n(part, num_rows, whole);
      std::copy_n(values, num_rows * width_, out);
      return;
    }
    for (int64_t i = 0; i < num_rows; ++i) {
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
    for (int64_t i = 0; i < rows_of(task); ++i) {
      const int64_t at = task.first_query + i % task.num_queries;
      const int64_t head = (task.first_head + i / task.num_queries) * group_ + at % group_;
      float factor = 1 / whole[i].total;
      if (layer_.sinks) {
        const float sink = layer_.sinks[head], most = std::max(whole[i].most, sink);
        const float own = std::exp(whole[i].most - most);
        factor = own / (whole[i].total * own + std::exp(sink - most));
      }
      Stored* out = static_cast<Stored*>(call_.out) +
                    ((step_.begins[task.row] + at / group_) * layer_.heads + head) * size;
      const float* from = values + i * width_;
      int64_t d = 0;
      for (; d + 2 * W <= size; d += 2 * W)
        Number::store2(out + d, Float32::load(from + d) * factor,
                       Float32::load(from + d + W) * factor);
      for (; d < size; d += W) {
        Stored some[W];
        Number::store(some, Float32::load(from + d) * factor);
        std::memcpy(out + d, some, std::min<int64_t>(W, size - d) * sizeof(Stored));
      }
    }
  }

  const SloserveStep& step_;
  const SloserveLayer& layer_;
  const SloserveCall& call_;
  const int64_t group_;  // query heads of one key head
  const int64_t width_;  // value_size, up to whole vectors
  int64_t work_ = 0;     // multiplications, about
  bool cut_ = false;     // whether long contexts are cut up
  int64_t num_floats_ = 0;
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
